"""Options and variables of sbatch that mean the same, or the opposite, and which of them win.

sbatch takes options from its command line, from its input variables (`SBATCH_*` of the shell) and
from the script, in this order, and some options are two spellings of one thing. Left alone, both
are sent, and the conflict shows in the queue or later.
"""

from collections.abc import Iterable, Iterator, Mapping

# Options that contradict one of ours; a user's additional parameter wins.
_RIVALS = {
    "gpus-per-node": ("gres", "gpus", "gpus-per-task", "gpus-per-socket"),
    "mem": ("mem-per-cpu", "mem-per-gpu"),
    "no-requeue": ("requeue",),
    "requeue": ("no-requeue",),
}
# The number of ranks: batches, rendezvous and logs depend on it.
_RESERVED = {
    "array": "submit a sweep instead, which is an array",
    "no-kill": "set spare_nodes",
    "nodes": "set nodes",
    "ntasks": "set nodes and tasks_per_node",
    "ntasks-per-core": "set tasks_per_node",
    "ntasks-per-gpu": "set tasks_per_node",
    "ntasks-per-node": "set tasks_per_node",
    "ntasks-per-socket": "set tasks_per_node",
    "wait": "the status of the run shows when it has ended",
}
# Input variables that are not named as their options (man sbatch, INPUT ENVIRONMENT VARIABLES).
_VARIABLES = {"array": "SBATCH_ARRAY_INX", "mem": "SBATCH_MEM_PER_NODE", "time": "SBATCH_TIMELIMIT"}


def check_additional(options: Iterable[str], *, size_varies: bool) -> None:
    """Check that additional options fit the ranks; ValueError if they do not.

    Args:
        size_varies: the ranks may run on fewer nodes than the job has.
    """
    for name in options:
        if name in _RESERVED:
            raise ValueError(f"additional_parameters.{name}: {_RESERVED[name]}")
        if name == "gpus" and size_varies:  # srun would request them all on some of the nodes
            raise ValueError(
                f"additional_parameters.{name}: the number of nodes varies; set gpus_per_node, or "
                "additional_parameters.gres"
            )


def contradicting(name: str, additional: Mapping[str, object]) -> list[str]:
    """Return the additional options that replace an option of ours."""
    rivals = (name, *_RIVALS.get(name, ()))
    return [rival for rival in rivals if rival in additional and _is_set(rival, additional[rival])]


def requests_gpus(additional: Mapping[str, object]) -> bool:
    """Check whether additional options request GPUs."""
    return bool(contradicting("gpus-per-node", additional))


def input_variables(names: Iterable[str]) -> Iterator[str]:
    """Yield the input variables of sbatch that would win over a script's options, or hide its id.

    Args:
        names: the names of the options in the script.
    """
    options = {option for name in names for option in (name, *_RIVALS.get(name, ()))}
    for name in sorted({*options, "wait"}):
        yield _VARIABLES.get(name, f"SBATCH_{name.upper().replace('-', '_')}")


def _is_set(name: str, value: object) -> bool:
    if name == "gres":  # which may be any resource
        return "gpu" in str(value)
    return value is not None and value is not False
