"""The cause of a crash: the rank that failed first, and the last error in its log.

srun ends the other ranks after the first, so its own exit code is theirs (137, killed) and not the
cause's.
"""

import re
import signal
from dataclasses import dataclass

from orchestrator.redact import one_line, redact_urls
from orchestrator.run.outcome import ExitCode
from orchestrator.run.rundir import RunDir
from slurm.node_failure import failed_node, first_ended, lost_node

_TAIL_BYTES = 4096
# Failures that are neither the run's fault nor its node's.
_PORT_TAKEN = ("EADDRINUSE", "Address already in use")
_DISK_FULL = ("No space left on device", "Disk quota exceeded")
# A rank's own refusal: of an error that all ranks have, rank 0 leaves an outcome. So its node lacks
# something that others have: a GPU, a network interface, a mount.
_UNFIT = f"Exited with exit code {ExitCode.FAILED_PERMANENTLY}"
_LOG_PREFIX = re.compile(r"^[\d\-]+ [\d:,]+ [A-Z]+ +")


@dataclass(frozen=True)
class FailureCause:
    """The cause of a crash.

    Args:
        why: the cause on one line.
        node: the node that failed, where the cause may be the node's own.
        is_transient: the cause may be gone by now, so it does not count as a crash of the run.
    """

    why: str
    node: str | None
    is_transient: bool


def find_failure_cause(run: RunDir, attempt: int, srun_code: int) -> FailureCause:
    """Find the cause of an attempt's crash in its logs."""
    if srun_code == 128 + signal.SIGTERM and not (run.log_dir(attempt) / "srun.log").exists():
        return FailureCause("the job was asked to stop before the ranks", None, is_transient=True)
    messages = read_srun_log(run, attempt)
    if lost := lost_node(messages):  # perhaps long after the other ranks have missed it
        return FailureCause(f"{lost} was lost", lost, is_transient=True)
    node, ended = failed_node(messages), first_ended(messages)
    if ended is None:
        return FailureCause(f"crashed with exit code {srun_code}", node, is_transient=False)
    tail = _log_tail(run, attempt, ended.rank)
    why = f"rank {ended.rank} on {ended.node}: {ended.how}"
    if ended.how == _UNFIT:
        node = ended.node
    is_full = any(words in tail for words in _DISK_FULL)
    # Other ranks may fail before rank 0: on whatever has the port and answers them.
    listener = _log_tail(run, attempt, 0)
    if ended.rank != 0 and any(words in listener for words in _PORT_TAKEN):
        why, tail = "rank 0", listener
    if line := _last_error(tail):
        why += f" ({line})"
    is_transient = any(words in tail for words in _PORT_TAKEN)
    return FailureCause(why, None if is_full else node, is_transient)


def read_srun_log(run: RunDir, attempt: int) -> str:
    """Read the messages of srun in an attempt."""
    file = run.log_dir(attempt) / "srun.log"
    return file.read_text(errors="replace") if file.exists() else ""


def _log_tail(run: RunDir, attempt: int, rank: int) -> str:
    file = run.log_dir(attempt) / f"rank-{rank:05d}.log"
    if not file.exists():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")


def _last_error(text: str) -> str:
    """Return the last line that names an error, or else the last line; not what Slurm says."""
    stripped = (line.strip() for line in text.splitlines())
    lines = [line for line in stripped if line and not line.startswith("slurmstepd-")]
    errors = [line for line in lines if "Error" in line]
    return one_line(redact_urls(_LOG_PREFIX.sub("", (errors or lines)[-1]))) if lines else ""
