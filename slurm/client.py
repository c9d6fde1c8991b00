"""Slurm's own commands: what is submitted, how it stands, how it is ended.

Nothing here needs accounting (`sacct`), which many sites do not have: what became of a job that
Slurm has forgotten is in its run directory. Where there is accounting, it says a little more.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.conflicting_options import input_variables
from slurm.errors import SlurmError

_DEADLINE_S = 120
_NOTHING = {"None", "N/A", "NOT_SET", "INVALID"}  # as squeue says that there is none
_NO_LIMIT = {"UNLIMITED", "365-00:00:00"}  # a year is what Slurm gives a job that has no limit
# What sbatch would take from a job that `tahoe submit` is called in.
_INHERITED = re.compile(r"(SLURM|SLURMD|SRUN|PMI|PMIX)_\w+")

# States of squeue in which nothing of a job runs any more, or will.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"),
}


@dataclass(frozen=True)
class QueuedJob:
    """A job that Slurm knows: `state` as squeue spells it, times as it shows them.

    `reason` is why it waits. It, `start` and `time_left` are empty where there is none.
    """

    job_id: str
    state: str
    reason: str
    num_nodes: int
    start: str
    time_left: str


def submit(script: Path, *, after: str | None = None) -> str:
    """Submit a job script and return the job's id.

    Args:
        after: the id of a job that must have ended well before.

    Raises:
        SlurmError: Slurm does not take it.
    """
    options = [f"--dependency=afterok:{after}"] if after else []
    done = _run("sbatch", "--parsable", *options, str(script), without=unused_variables(script))
    return done.stdout.strip().partition(";")[0]


def unused_variables(script: Path) -> dict[str, str]:
    """Return the `SBATCH_*` variables of this shell that say what a job script says by itself.

    sbatch would follow them and not the script. They are kept from it: the script is the job.
    """
    names = re.findall(r"^#SBATCH --([a-z\-]+)", script.read_text(), re.MULTILINE)
    return {name: os.environ[name] for name in input_variables(names) if name in os.environ}


def test_submission(script: Path) -> str:
    """Return what Slurm says of when and where a job script would start, without submitting it.

    Raises:
        SlurmError: it would not be taken.
    """
    said = _run("sbatch", "--test-only", str(script), without=unused_variables(script)).stderr
    return re.sub(r"^sbatch: ", "", said.strip(), flags=re.MULTILINE)


def silence() -> str | None:
    """Return why Slurm does not answer on this machine, None if it does."""
    try:
        _call("sinfo", "--noheader")
    except SlurmError as error:
        return str(error)
    return None


def queued_jobs(job_ids: Iterable[str]) -> dict[str, QueuedJob]:
    """Return those of the jobs that Slurm still knows, by id.

    Raises:
        SlurmError: Slurm does not answer.
    """
    wanted = list(job_ids)
    if not wanted:
        return {}
    # Not asked for by id: one that Slurm has forgotten would make an error of the whole answer.
    fields = "%i|%T|%r|%D|%S|%L|%l"
    out = _call("squeue", "--noheader", "--array", "--states=all", "--me", f"--format={fields}")
    found = {}
    for line in out.splitlines():
        job_id, state, reason, num_nodes, start, left, limit = line.split("|")
        reason, start = ("" if text in _NOTHING else text for text in (reason, start))
        left = "" if limit in _NO_LIMIT or left in _NOTHING else left
        found[job_id] = QueuedJob(job_id, state, reason, int(num_nodes), start, left)
    return {job_id: found[job_id] for job_id in wanted if job_id in found}


def final_states(job_ids: Iterable[str]) -> dict[str, str]:
    """Return the states in which jobs have ended, of those that Slurm's accounting knows."""
    listed = ",".join(job_ids)
    if not listed or shutil.which("sacct") is None:
        return {}
    fields = "--format=JobID,State"
    try:
        out = _call("sacct", "--noheader", "--parsable2", "--allocations", fields, "--jobs", listed)
    except SlurmError:  # the program is there, and no accounting behind it
        return {}
    return dict(line.split("|") for line in out.splitlines())


def down_nodes(nodes: str) -> list[str]:
    """Return those of some nodes (`node[1-2]`) that are down or do not answer.

    Raises:
        SlurmError: Slurm does not answer.
    """
    out = _call("sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N %t")
    states = dict(line.split() for line in out.splitlines())  # a node is there for each partition
    return [node for node, state in states.items() if state.startswith("down") or "*" in state]


def node_names(nodes: str) -> list[str]:
    """Return the names that a list of nodes (`node[1-2]`) stands for.

    Raises:
        SlurmError: it is none.
    """
    return _call("scontrol", "show", "hostnames", nodes).split()


def cancel(job_ids: Iterable[str]) -> None:
    """End jobs, waiting or running.

    Raises:
        SlurmError: Slurm does not let us.
    """
    if listed := list(job_ids):
        _call("scancel", *listed)


def _call(*command: str) -> str:
    return _run(*command).stdout


def _run(*command: str, without: Collection[str] = ()) -> "subprocess.CompletedProcess[str]":
    environ = {k: v for k, v in os.environ.items() if not _is_inherited(k) and k not in without}
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except FileNotFoundError:
        raise SlurmError(
            f"there is no `{command[0]}` on this machine, so Slurm cannot be asked. Run this on a "
            "login node of the cluster, or use `tahoe train` to run on this machine."
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"`{command[0]}` has not answered for {_DEADLINE_S} s: Slurm's controller is busy or "
            "down. What was asked for may have been done: look at `squeue --me` before you try "
            "again."
        ) from None
    if done.returncode:
        raise SlurmError(_explain(command, done.stderr or f"exit code {done.returncode}"))
    return done


def _is_inherited(name: str) -> bool:
    return name != "SLURM_CONF" and _INHERITED.fullmatch(name) is not None


def _explain(command: Sequence[str], stderr: str) -> str:
    said = re.sub(rf"^{command[0]}: (error: )?", "", stderr.strip(), flags=re.MULTILINE)
    return (
        f"`{command[0]}` failed: {said}. Mend what it names (partition, account "
        "and limits are keys of `slurm`), or ask those who run the cluster."
    )
