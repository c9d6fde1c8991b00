"""Slurm's commands: submit, query and cancel jobs.

Nothing here needs accounting (`sacct`), which many sites do not have: the end of a job that Slurm
has forgotten is recorded in its run directory. Where there is accounting, it adds a little.
"""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.conflicting_options import input_variables
from slurm.errors import SlurmError

_TIMEOUT_S = 120
_OPTION_HINT = (
    "Correct the option that it names (partition, account, limits, ...), or ask the administrators "
    "of the cluster."
)
_GPU_HINT = (
    "`sinfo -o '%P %G'` lists the GPUs that Slurm knows. `additional_parameters.gres` replaces "
    "--gpus-per-node, e.g. gpu:a100:4; where Slurm knows none, set `gpus_per_node` to 0 and "
    "`tasks_per_node` to their number."
)
_NONE = {"None", "N/A", "NOT_SET", "INVALID"}  # squeue's words for a missing value
_NO_LIMIT = {"UNLIMITED", "365-00:00:00"}  # Slurm gives a job without a limit a year
# Variables that sbatch would inherit from a job that Tahoe is called in.
_INHERITED = re.compile(r"(SLURM|SLURMD|SRUN|PMI|PMIX)_\w+")

# States of squeue in which no process of a job runs, or will run again.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm knows: `state` and times as squeue spells them.

    `reason` is why it waits. It, `start` and `time_left` are empty if unknown.
    """

    job_id: str
    state: str
    reason: str
    num_nodes: int
    start: str
    time_left: str


def submit(script: Path, *, after: str | None = None, after_end: str | None = None) -> str:
    """Submit a job script and return the job's id.

    Args:
        after: the id of a job that must succeed before.
        after_end: the id of a job that must end before, in any way.
    """
    conditions = {"afterok": after, "afterany": after_end}
    options = [f"--dependency={kind}:{job}" for kind, job in conditions.items() if job]
    done = _run("sbatch", "--parsable", *options, str(script), hidden=ignored_variables(script))
    return done.stdout.strip().partition(";")[0]


def ignored_variables(script: Path) -> dict[str, str]:
    """Return the `SBATCH_*` variables of this shell that contradict options of a job script.

    sbatch would prefer them to the script, so they are hidden from it.
    """
    names = re.findall(r"^#SBATCH --([a-z\-]+)", script.read_text(), re.MULTILINE)
    return {name: os.environ[name] for name in input_variables(names) if name in os.environ}


def test_submission(script: Path) -> str:
    """Return sbatch's message about when and where a job script would start, without submitting."""
    done = _run("sbatch", "--test-only", str(script), hidden=ignored_variables(script))
    return re.sub(r"^sbatch: ", "", done.stderr.strip(), flags=re.MULTILINE)


def unreachable_reason() -> str | None:
    """Return the reason that Slurm cannot be reached from this machine; None if it can."""
    try:
        _run("sinfo", "--noheader")
    except SlurmError as error:
        return str(error)
    return None


def queued_jobs(job_ids: Iterable[str]) -> dict[str, QueuedJob]:
    """Return the jobs that Slurm still knows, by id."""
    requested = list(job_ids)
    if not requested:
        return {}
    # Not queried by id: one that Slurm has forgotten would make the whole query fail.
    fields = "%i|%T|%r|%D|%S|%L|%l"
    out = _output("squeue", "--noheader", "--array", "--states=all", "--me", f"--format={fields}")
    jobs = {}
    for line in out.splitlines():
        job_id, state, reason, num_nodes, start, left, limit = line.split("|")
        reason, start = ("" if text in _NONE else text for text in (reason, start))
        left = "" if limit in _NO_LIMIT or left in _NONE else left
        jobs[job_id] = QueuedJob(job_id, state, reason, int(num_nodes), start, left)
    return {job_id: jobs[job_id] for job_id in requested if job_id in jobs}


def final_states(job_ids: Iterable[str]) -> dict[str, str]:
    """Return the final states of the jobs that Slurm's accounting knows, by id."""
    ids = ",".join(job_ids)
    if not ids or shutil.which("sacct") is None:
        return {}
    fields = "--format=JobID,State"
    try:
        out = _output("sacct", "--noheader", "--parsable2", "--allocations", fields, "--jobs", ids)
    except SlurmError:  # the program without accounting behind it
        return {}
    return dict(line.split("|") for line in out.splitlines())


def down_nodes(nodes: str) -> list[str]:
    """Return the nodes of a list (`node[1-2]`) that are down or do not respond."""
    states = _node_states(nodes)
    return [node for node, state in states.items() if _is_down(state)]


def unfit_nodes(nodes: str) -> list[str]:
    """Return the nodes of a list that are down, that the site drains, or that it expects to fail.

    On all but those that are down jobs run on, and may start further steps.
    """
    states = _node_states(nodes)
    return [n for n, s in states.items() if _is_down(s) or s.startswith(("dr", "fail"))]


def _is_down(state: str) -> bool:
    return state.startswith("down") or "*" in state


def _node_states(nodes: str) -> dict[str, str]:
    out = _output("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %t")
    return dict(line.split() for line in out.splitlines())  # one line a node and partition


def job_nodes(job_id: str) -> list[str]:
    """Return the nodes that a running job has, without those that it has lost."""
    out = _output("squeue", "--noheader", f"--jobs={job_id}", "--format=%N").strip()
    return node_names(out) if out else []


def time_left_s(job_id: str) -> float:
    """Return the time until a job's limit; infinity without one."""
    return parse_time_s(_output("squeue", "--noheader", f"--jobs={job_id}", "--format=%L"))


def parse_time_s(text: str) -> float:
    """Convert squeue's `[days-][[hours:]minutes:]seconds`; what is no time counts as no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if match is None:
        return math.inf
    days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def responding_nodes(job_id: str, nodes: Sequence[str], *, timeout_s: float) -> list[str]:
    """Return those nodes of a running job that start a process within `timeout_s` seconds.

    Args:
        job_id: the id of one job, not of an element of an array.
    """
    if not nodes:
        return []
    number = len(nodes)
    command = (
        *("srun", f"--jobid={job_id}", "--overlap", f"--nodelist={','.join(nodes)}"),
        *(f"--nodes={number}", f"--ntasks={number}", "--ntasks-per-node=1"),
        *("--gres=none", "--mpi=none", "--input=none", "bash", "-c", 'echo "$SLURMD_NODENAME"'),
    )
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, env=_environ(), stdout=pipe, stderr=null, text=True)
    except OSError:
        return []
    try:
        out, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()  # SIGTERM would wait for the nodes
        out, _ = process.communicate()
    return [node for node in nodes if node in out.split()]


def node_list(names: Sequence[str]) -> str:
    """Write nodes as a list in Slurm's short form (`node[1-2]`)."""
    return _output("scontrol", "show", "hostlist", ",".join(names)).strip()


def node_names(nodes: str) -> list[str]:
    """Expand a list of nodes (`node[1-2]`)."""
    return _output("scontrol", "show", "hostnames", nodes).split()


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs, waiting or running."""
    if ids := list(job_ids):
        _run("scancel", *ids)


def _output(*command: str) -> str:
    return _run(*command).stdout


def _run(*command: str, hidden: Collection[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run a command of Slurm; SlurmError if it fails."""
    program = command[0]
    try:
        done = subprocess.run(
            command,
            env=_environ(hidden),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"there is no `{program}` on this machine, so Slurm cannot be reached",
            value=program,
            hint="Run this on a login node of the cluster, or train on this machine with `train`.",
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"`{program}` has not responded for {_TIMEOUT_S} s: Slurm's controller is busy or down",
            value=program,
            hint="The request may have been carried out: check `squeue --me` before you try again.",
        ) from None
    if done.returncode:
        stderr = done.stderr.strip() or f"exit code {done.returncode}"
        message = re.sub(rf"^{program}: (error: )?", "", stderr, flags=re.MULTILINE)
        raise SlurmError(
            f"`{program}` failed: {message}",
            value=program,
            hint=_GPU_HINT if "(gres)" in message else _OPTION_HINT,
        )
    return done


def _environ(hidden: Collection[str] = ()) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not _is_inherited(k) and k not in hidden}


def _is_inherited(name: str) -> bool:
    return name != "SLURM_CONF" and _INHERITED.fullmatch(name) is not None
