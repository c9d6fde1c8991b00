"""A job script: the value of one pure function of one dataclass.

The script is one attempt of a run. It takes the run's lock, notes the attempt, starts the ranks
with srun, and leaves the decision what comes next to the module `hooks`. `sbatch` it by
hand and it does the same as `tahoe submit`.
"""

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from string import Template
from types import MappingProxyType
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from slurm.conflicting_options import asks_for_gpus, check_further, contradicted, input_variables

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
        tasks_per_node: the ranks of a node; None is one a GPU, or one where there are none.
        timeout_min: the time limit of an attempt; the run continues in the next one.
        array_parallelism: the largest number of elements of an array that run at the same time.
        signal_delay_s: the time before the limit at which the ranks save and stop.
        modules: environment modules to load.
        setup: lines of shell for the first node, before the ranks are started.
        additional_parameters: further options of sbatch, without their dashes; True for a flag.
    """

    nodes: PositiveInt
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
        limit_s = None if self.timeout_min is None else 60 * self.timeout_min
        if limit_s is not None and limit_s <= self.signal_delay_s:
            raise ValueError(
                f"timeout_min={self.timeout_min} is {limit_s} s, and the ranks save and stop "
                f"signal_delay_s={self.signal_delay_s} before that: at once. Give them more time, "
                "or a shorter delay"
            )

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1


@dataclass(frozen=True)
class SbatchRequest(SbatchOptions):
    """A job: its options, and the run that it executes.

    Args:
        run_dir: absolute path of the run directory.
        python: the interpreter, as all nodes see it.
        python_path: directories that modules come from, before the environment's own.
        environ: further variables of the job.

    Raises:
        ValueError: a value cannot stand in a script, or contradicts another.
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
                raise ValueError(f"{key!r} cannot be the name of an environment variable")
        for key in self.additional_parameters:
            if not re.fullmatch(r"[a-z][a-z0-9\-_]+", key):
                raise ValueError(f"{key!r} is no long option of sbatch, without its dashes")
        check_further(self.further_options)

    @property
    def further_options(self) -> dict[str, str | int | float | bool]:
        """The additional parameters as sbatch spells them; submitit has underscores there."""
        return {key.replace("_", "-"): value for key, value in self.additional_parameters.items()}


def render_sbatch(job: SbatchRequest, *, worker: str, hooks: str) -> str:
    """Return the job script.

    Args:
        worker: the module that each rank runs.
        hooks: the module that is run before and after the ranks, with `begin` or `end`.

    Raises:
        ValueError: an option of sbatch holds a line break, which no script can.
    """
    purpose = (
        "One attempt of a Tahoe run. Written by `tahoe submit`; `sbatch` this file does the same."
    )
    return render_template(
        PREAMBLE + _ON_START + LAUNCH_RANKS + _ON_END,
        job,
        sbatch_options(job),
        purpose=purpose,
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
    """Return a script made of the parts below.

    Args:
        options: of sbatch.
        purpose: said in its first lines.
        module: what each rank runs, with the run directory as its argument.
        hooks: see `render_sbatch`.
    """
    lines = list(options)
    names = [line.partition("=")[0] for line in lines]
    return Template(script).substitute(
        directives="\n".join(f"#SBATCH --{line}" for line in lines),
        purpose=purpose,
        input_variables=" \\\n    ".join(textwrap.wrap(" ".join(input_variables(names)), 90)),
        run=shlex.quote(job.run_dir),
        python=shlex.quote(job.python),
        exports="\n".join(_exports(job)),
        setup="".join(f"{line}\n" for line in _setup(job)),
        tasks_per_node=job.ranks_per_node,
        srun=" \\\n    ".join(_srun(job)),
        interpreter=_interpreter(job),
        module=module,
        hooks=hooks,
    )


PREAMBLE = r"""#!/bin/bash
$directives

# $purpose
run=$run
python=$python
# Of --export=NONE: srun would keep from the ranks what is exported here.
unset SLURM_EXPORT_ENV
# Of the shell that submitted this: another attempt would be asked for with them instead.
unset $input_variables
$exports

${setup}"""

_ON_START = r"""# In an array the job id of one element is that of the whole array.
job=$${SLURM_ARRAY_JOB_ID:+$${SLURM_ARRAY_JOB_ID}_$$SLURM_ARRAY_TASK_ID}
job=$${job:-$$SLURM_JOB_ID}
state() { squeue --noheader --jobs "$$job" --format '%T %r'; }
resubmitted= excluded=
resubmit() {
    [ -z "$$resubmitted" ] || return 0
    local new
    new=$$(sbatch --parsable --dependency=afterany:"$$job" \
        $${excluded:+--exclude="$$excluded"} "$$run/job.sbatch") || return
    printf '{"slurm_job_id": "%s"}\n' "$${new%%;*}" >>"$$run/jobs.jsonl"
    resubmitted=yes
}

# The ranks answer signals: they save and end. This shell waits for them; but at the time limit it
# is killed if that takes long, so what comes after is submitted first.
trap interrupted=yes USR1 USR2
trap 'interrupted=yes; [[ $$(state) == *TimeLimit ]] && resubmit' TERM

exec 9>>"$$run/lock"
flock --timeout 60 9
case $$? in
0) ;;
1)
    echo "error: another attempt of $$run is running, on $$(cat "$$run/lock")" >&2
    exit 1
    ;;
*)
    echo "error: $$run is on a file system without locks: attempts would overwrite each other's" \
        "files. Have it mounted with locks (Lustre: -o flock), or choose another: runs_dir=DIR" >&2
    exit 1
    ;;
esac
attempt=$$("$$python" -m $hooks begin "$$run") || exit
[ -n "$$attempt" ] || exit 0 # finished already

"""

LAUNCH_RANKS = r"""first_node=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
[ -n "$$first_node" ] || { echo "error: scontrol names no node of this job" >&2; exit 1; }
export MASTER_ADDR=$$first_node
export MASTER_PORT=$$((20000 + (SLURM_JOB_ID * 13 + $${SLURM_RESTART_COUNT:-0}) % 12000))
export TAHOE_ATTEMPT=$$attempt LOCAL_WORLD_SIZE=$tasks_per_node
export SRUN_CPUS_PER_TASK=$${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch
logs=$$run/logs/attempt-$$(printf %04d "$$attempt")

srun $srun \
    bash -c 'trap "" TERM USR1 USR2 # until the worker listens
        export RANK=$$SLURM_PROCID LOCAL_RANK=$$SLURM_LOCALID WORLD_SIZE=$$SLURM_NTASKS
        exec "$$@" -m $module "$$0"' "$$run" \
    $interpreter 2>"$$logs/srun.log" &
interrupted=yes
while [ -n "$$interrupted" ]; do # a signal ends `wait`, and not srun
    interrupted=
    wait "$$!"
    code=$$?
done
cat "$$logs/srun.log" >&2

"""

_ON_END = r"""state=$$(state)
next=$$("$$python" -m $hooks end "$$run" "$$attempt" "$$code" "$$state") \
    || exit
read -r next excluded <<<"$$next" # nodes that the run has died of twice

[ -z "$$resubmitted" ] || exit 75
case $$next in
    requeue)
        trap "" TERM # which this brings, to every process that this shell starts
        if scontrol requeue "$$job"; then
            # Slurm takes it of a job that waits, so not before.
            [ -z "$$excluded" ] || scontrol update JobId="$$job" ExcNodeList="$$excluded"
            exit 75
        fi
        ;;
    resubmit) ;;
    *) exit "$$next" ;;
esac
resubmit || exit
exit 75
"""


def sbatch_options(
    job: SbatchRequest, replaced: Mapping[str, object] = MappingProxyType({})
) -> Iterator[str]:
    """Yield the options of sbatch, some of them replaced or added.

    Raises:
        ValueError: one holds a line break, which no script can.
    """
    own, further = _own_options(job), job.further_options
    kept = {name: value for name, value in own.items() if not contradicted(name, further)}
    options: dict[str, object] = {**kept, **further, **replaced}
    for name, value in options.items():
        if value is True:
            yield name
        elif value is not None and value is not False:
            yield f"{name}={_quoted(name, str(value))}"


def overruled(job: SbatchRequest) -> Iterator[tuple[str, str]]:
    """Yield each option of a job's own, and the additional parameter that stands in its place."""
    further = job.further_options
    for name, value in _own_options(job).items():
        for rival in contradicted(name, further):
            if value is not None and (rival, further[rival]) != (name, value):
                yield _spelled(name, value), _spelled(rival, further[rival])


def _spelled(name: str, value: object) -> str:
    return name if value is True else f"{name}={value}"


def _own_options(job: SbatchRequest) -> dict[str, object]:
    return {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks_per_node,
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


def _quoted(name: str, value: str) -> str:
    """Return a value as sbatch reads it in a script: its quotes are like a shell's, but simpler."""
    if "\n" in value or "\r" in value:
        raise ValueError(f"{name}: {value!r} has a line break, which no option of sbatch can hold")
    if name == "output" and "\\" in value:
        raise ValueError(
            f"{name}: {value!r} has a backslash, and so Slurm would take its %j for plain text: "
            "jobs would write over each other. Choose a run directory without one"
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
    yield "--kill-on-bad-exit=1 --wait=60"
    yield f"--ntasks-per-node={job.ranks_per_node} --open-mode=append"
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
    gpus = ["--nv"] if job.gpus_per_node or asks_for_gpus(job.further_options) else []
    bind = f"--bind={','.join(_mounts(job, container))}"
    return shlex.join(["apptainer", "exec", *gpus, bind, container.image, container.python])


def _mounts(job: SbatchRequest, container: Container) -> Iterator[str]:
    for mount in (job.run_dir, *job.python_path, *container.mounts):
        yield mount if ":" in mount else f"{mount}:{mount}"
