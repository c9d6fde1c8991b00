"""Other words that ask Slurm for what an option of a job asks for, and which of them win.

sbatch takes options from its command line, from its input variables (`SBATCH_*` of the shell) and
from the script, in this order, and some options say in two ways what is one thing. Left alone,
both are sent, and it shows in the queue or after it.
"""

from collections.abc import Iterable, Iterator, Mapping

# Options that contradict one of ours. Who gives one as a further option means it.
_RIVALS = {
    "gpus-per-node": ("gres", "gpus", "gpus-per-task", "gpus-per-socket"),
    "mem": ("mem-per-cpu", "mem-per-gpu"),
    "no-requeue": ("requeue",),
    "requeue": ("no-requeue",),
}
# The number of ranks: batches, rendezvous and logs are reckoned with it.
_OF_THE_RUN = {
    "array": "a sweep is an array by itself: `tahoe submit -m`",
    "nodes": "set slurm.nodes",
    "ntasks": "set slurm.nodes and slurm.tasks_per_node",
    "ntasks-per-core": "set slurm.tasks_per_node",
    "ntasks-per-gpu": "set slurm.tasks_per_node",
    "ntasks-per-node": "set slurm.tasks_per_node",
    "ntasks-per-socket": "set slurm.tasks_per_node",
    "wait": "`tahoe status RUN` says when it has ended",
}
# Input variables that are not named as their options (man sbatch, INPUT ENVIRONMENT VARIABLES).
_VARIABLES = {"array": "SBATCH_ARRAY_INX", "mem": "SBATCH_MEM_PER_NODE", "time": "SBATCH_TIMELIMIT"}


def check_further(options: Mapping[str, object]) -> None:
    """Refuse further options that change what the run is reckoned with.

    Raises:
        ValueError: there is one.
    """
    for name in options:
        if remedy := _OF_THE_RUN.get(name):
            raise ValueError(f"additional_parameters.{name}: {remedy}")


def contradicted(name: str, further: Mapping[str, object]) -> list[str]:
    """Return the further options that say what an option of ours says, or its opposite."""
    rivals = (name, *_RIVALS.get(name, ()))
    return [rival for rival in rivals if rival in further and _is_meant(rival, further[rival])]


def asks_for_gpus(further: Mapping[str, object]) -> bool:
    """Whether further options ask for GPUs."""
    return bool(contradicted("gpus-per-node", further))


def input_variables(names: Iterable[str]) -> Iterator[str]:
    """Yield the input variables of sbatch that would win over a script's options, or hide its id.

    Args:
        names: of the options that the script has.
    """
    said = {same for name in names for same in (name, *_RIVALS.get(name, ()))}
    for name in sorted({*said, "wait"}):
        yield _VARIABLES.get(name, f"SBATCH_{name.upper().replace('-', '_')}")


def _is_meant(name: str, value: object) -> bool:
    if name == "gres":  # which may be of anything
        return "gpu" in str(value)
    return value is not None and value is not False
