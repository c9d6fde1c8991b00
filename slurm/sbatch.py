"""The options of sbatch, and the rendering of a job script: a pure function of one dataclass."""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from string import Template
from types import MappingProxyType
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from slurm.conflicting_options import (
    check_additional,
    contradicting,
    input_variables,
    requests_gpus,
)
from slurm.job_script import PREAMBLE, attempts

SIGNAL = "USR2"  # sent to every process of the ranks some time before the limit


@dataclass(frozen=True, kw_only=True)
class Container:
    """The container that the ranks run in.

    Args:
        runtime: pyxis is an option of srun, apptainer a command.
        python: the interpreter inside it.
        mounts: SOURCE or SOURCE:TARGET, besides the run directory and `python_path`.
    """

    image: str
    runtime: Literal["pyxis", "apptainer"]
    python: str
    mounts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SbatchOptions:
    """The resources and the environment of a job, in submitit's words.

    None leaves a choice to the site. The bounds hold where pydantic reads these options.

    Args:
        nodes: the nodes of the run; "4-8" is as many as Slurm gives at the time.
        spare_nodes: the nodes that the job has beside those, to replace lost ones.
        tasks_per_node: the ranks of a node; None is one a GPU, or one where there are none.
        timeout_min: the time limit of the job; the run continues in the next one.
        array_parallelism: the most elements of an array that run at the same time.
        signal_delay_s: the time before the limit at which the ranks save and stop.
        modules: environment modules to load.
        setup: lines of shell for the first node, before the ranks are started.
        additional_parameters: additional options of sbatch, without dashes; True for a flag.
    """

    nodes: int | str
    spare_nodes: NonNegativeInt = 0
    tasks_per_node: PositiveInt | None
    gpus_per_node: NonNegativeInt
    cpus_per_task: PositiveInt | None
    mem_gb: PositiveFloat | None
    timeout_min: PositiveInt | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    array_parallelism: PositiveInt | None
    signal_delay_s: PositiveInt
    modules: tuple[str, ...]
    setup: tuple[str, ...]
    container: Container | None
    srun_args: tuple[str, ...]
    additional_parameters: dict[str, str | int | float | bool]

    def __post_init__(self) -> None:
        is_valid = re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", str(self.nodes), re.ASCII)
        if not is_valid or self.min_nodes > self.max_nodes:
            raise ValueError(
                f"nodes={self.nodes!r} must be a number of at least 1, or FEWEST-MOST such as 4-8"
            )
        limit_s = None if self.timeout_min is None else 60 * self.timeout_min
        if limit_s is not None and limit_s <= self.signal_delay_s:
            raise ValueError(
                f"timeout_min={self.timeout_min} is {limit_s} s, and the ranks save and stop "
                f"signal_delay_s={self.signal_delay_s} before that: at once. Give them more time, "
                "or a shorter delay"
            )

    @property
    def min_nodes(self) -> int:
        return int(str(self.nodes).partition("-")[0])

    @property
    def max_nodes(self) -> int:
        return int(str(self.nodes).rpartition("-")[2])

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1


@dataclass(frozen=True)
class SbatchRequest(SbatchOptions):
    """A job: its options, and the run that it executes.

    Args:
        run_dir: the absolute path of the run directory.
        python: the interpreter, by a path that all nodes see.
        python_path: directories that come before the environment's own modules.
        environ: additional variables of the job.

    Raises:
        ValueError: a name is invalid, or an additional option contradicts the size of the job.
    """

    name: str
    run_dir: str
    python: str
    python_path: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in self.environ:
            if not re.fullmatch(r"[A-Za-z_]\w*", key):
                raise ValueError(f"{key!r} is not a valid name of an environment variable")
        for key in self.additional_parameters:
            if not re.fullmatch(r"[a-z][a-z0-9\-_]+", key):
                raise ValueError(f"{key!r} is not a long option of sbatch without its dashes")
        check_additional(
            self.additional_options,
            size_varies=self.spare_nodes > 0 or self.min_nodes < self.max_nodes,
        )

    @property
    def additional_options(self) -> dict[str, str | int | float | bool]:
        """The additional parameters in sbatch's spelling; submitit's has underscores."""
        return {key.replace("_", "-"): value for key, value in self.additional_parameters.items()}


def render_sbatch(job: SbatchRequest, *, worker: str, hooks: str) -> str:
    """Render the job script.

    Args:
        worker: the module that each rank runs.
        hooks: the module that runs before and after the ranks, with `begin` or `end`.
    """
    return render_template(
        PREAMBLE + attempts(watches_script=job.spare_nodes > 0),
        job,
        sbatch_options(job),
        purpose="A Tahoe run. Written by `tahoe submit`; `sbatch` this file does the same.",
        module=worker,
        hooks=hooks,
    )


def render_template(
    script: str,
    job: SbatchRequest,
    options: Iterable[str],
    *,
    purpose: str,
    module: str,
    hooks: str = "",
) -> str:
    """Render a script made of the parts below.

    Args:
        options: the options of sbatch.
        purpose: a comment in its first lines.
        module: the module that each rank runs, with the run directory as its argument.
        hooks: see `render_sbatch`.
    """
    lines = list(options)
    names = [line.partition("=")[0] for line in lines]
    return Template(script).substitute(
        directives=directives(lines),
        purpose=purpose,
        input_variables=" \\\n    ".join(textwrap.wrap(" ".join(input_variables(names)), 90)),
        run=shlex.quote(job.run_dir),
        python=shlex.quote(job.python),
        exports="\n".join(_exports(job)),
        setup="".join(f"{line}\n" for line in _setup(job)),
        tasks_per_node=job.ranks_per_node,
        srun=" \\\n        ".join(_srun(job)),
        interpreter=_interpreter(job),
        module=module,
        hooks=hooks,
    )


def directives(options: Iterable[str]) -> str:
    return "\n".join(f"#SBATCH --{option}" for option in options)


def sbatch_options(
    job: SbatchRequest, replaced: Mapping[str, object] = MappingProxyType({})
) -> Iterator[str]:
    """Yield the options of sbatch, some of them replaced or added."""
    own, additional = _own_options(job), job.additional_options
    kept = {name: value for name, value in own.items() if not contradicting(name, additional)}
    for name, value in {**kept, **additional, **replaced}.items():
        if value is True:
            yield name
        elif value is not None and value is not False:
            yield f"{name}={_quoted(name, str(value))}"


def overruled(job: SbatchRequest) -> Iterator[tuple[str, str]]:
    """Yield each option of a job that an additional parameter replaces, and that parameter."""
    additional = job.additional_options
    for name, value in _own_options(job).items():
        for rival in contradicting(name, additional):
            if value is not None and (rival, additional[rival]) != (name, value):
                yield _spelled(name, value), _spelled(rival, additional[rival])


def _spelled(name: str, value: object) -> str:
    return name if value is True else f"{name}={value}"


def _own_options(job: SbatchRequest) -> dict[str, object]:
    return {
        "job-name": job.name,
        "nodes": _requested_nodes(job),
        "no-kill": job.spare_nodes > 0 or None,
        **_tasks(job),
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_task,
        "mem": None if job.mem_gb is None else f"{round(job.mem_gb * 1024)}M",
        "time": job.timeout_min,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "exclude": job.exclude,
        "signal": f"{SIGNAL}@{job.signal_delay_s}",
        "requeue": True,
        "open-mode": "append",
        "output": f"{job.run_dir.replace('%', '%%')}/slurm/%j.out",
    }


def _tasks(job: SbatchRequest) -> dict[str, object]:
    """Return the option that makes room for the ranks of a node.

    From ntasks-per-node sbatch computes the tasks of the fewest nodes of a range, and Slurm gives
    no more nodes than those need (22.05: two of 1-3). srun gets options of its own in any case.
    """
    if job.min_nodes == job.max_nodes:
        return {"ntasks-per-node": job.ranks_per_node}
    return {"mincpus": job.ranks_per_node * (job.cpus_per_task or 1)}


def _requested_nodes(job: SbatchRequest) -> str:
    fewest, most = job.min_nodes + job.spare_nodes, job.max_nodes + job.spare_nodes
    return f"{fewest}" if fewest == most else f"{fewest}-{most}"


def _quoted(name: str, value: str) -> str:
    """Quote a value as sbatch reads it in a script: like a shell, but simpler."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"{name}: {value!r} has a line break, which sbatch does not support")
    if name == "output" and "\\" in value:
        raise ValueError(
            f"{name}: {value!r} has a backslash, so Slurm would not expand its %j and jobs would "
            "overwrite each other's output. Choose a run directory without one"
        )
    if re.fullmatch(r"[\w@%+=:,./\-]*", value, re.ASCII):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _exports(job: SbatchRequest) -> Iterator[str]:
    environ = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **job.environ}
    if job.python_path:
        environ["PYTHONPATH"] = ":".join(job.python_path)
    yield from (f"export {key}={shlex.quote(value)}" for key, value in environ.items())


def _setup(job: SbatchRequest) -> Iterator[str]:
    yield from (f"module load {shlex.quote(module)}" for module in job.modules)
    yield from job.setup


def _srun(job: SbatchRequest) -> Iterator[str]:
    yield "--kill-on-bad-exit=1 --wait=60 --open-mode=append"
    ranks = job.ranks_per_node
    yield f'--nodes="$num_nodes" --ntasks="$((num_nodes * {ranks}))" --ntasks-per-node={ranks}'
    yield '--nodelist="$nodes"'
    yield '--output="${logs//%/%%}/rank-%5t.log"'
    if job.container and job.container.runtime == "pyxis":
        yield f"--container-image={shlex.quote(job.container.image)}"
        yield f"--container-mounts={shlex.quote(','.join(_mounts(job, job.container)))}"
    yield from map(shlex.quote, job.srun_args)


def _interpreter(job: SbatchRequest) -> str:
    container = job.container
    if container is None:
        return '"$python"'
    if container.runtime == "pyxis":
        return shlex.quote(container.python)
    gpus = ["--nv"] if job.gpus_per_node or requests_gpus(job.additional_options) else []
    bind = f"--bind={','.join(_mounts(job, container))}"
    return shlex.join(["apptainer", "exec", *gpus, bind, container.image, container.python])


def _mounts(job: SbatchRequest, container: Container) -> Iterator[str]:
    for mount in (job.run_dir, *job.python_path, *container.mounts):
        yield mount if ":" in mount else f"{mount}:{mount}"
