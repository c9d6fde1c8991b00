"""Why an attempt crashed: the first rank that ended by itself, and the last line of its log.

srun ends the other ranks after the first, so its own exit code is theirs (137, killed) and not the
cause's.
"""

from dataclasses import dataclass

from orchestrator.redact import one_line, redact_urls
from orchestrator.run.rundir import RunDir
from slurm.node_failure import failed_node, first_ended

_TAIL_BYTES = 4096
# Troubles that are neither the run's fault nor its node's.
_PORT_TAKEN = ("EADDRINUSE", "Address already in use")
_NO_ROOM = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True)
class FailureCause:
    """Why an attempt crashed.

    Args:
        why: on one line.
        node: that failed, where the cause may be the node's own.
        is_passing: it is of this moment, so it is not counted as a crash of the run.
    """

    why: str
    node: str | None
    is_passing: bool


def find_failure_cause(run: RunDir, attempt: int, code: int) -> FailureCause:
    """Return why the ranks of a job crashed.

    Args:
        code: of srun.
    """
    messages = read_srun_log(run, attempt)
    ended = first_ended(messages)
    if ended is None:
        return FailureCause(
            f"crashed with exit code {code}", failed_node(messages), is_passing=False
        )
    tail = _tail(run, attempt, ended.rank)
    why = f"rank {ended.rank} on {ended.node}: {ended.how}"
    if line := _last_line(tail):
        why += f" ({line})"
    is_full = any(words in tail for words in _NO_ROOM)
    return FailureCause(
        why,
        None if is_full else failed_node(messages),
        is_passing=any(words in tail for words in _PORT_TAKEN),
    )


def read_srun_log(run: RunDir, attempt: int) -> str:
    """Return what srun has said in an attempt."""
    file = run.log_dir(attempt) / "srun.log"
    return file.read_text(errors="replace") if file.exists() else ""


def _tail(run: RunDir, attempt: int, rank: int) -> str:
    file = run.log_dir(attempt) / f"rank-{rank:05d}.log"
    if not file.exists():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace")


def _last_line(text: str) -> str:
    """Return the last line that names an error, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return one_line(redact_urls((named or lines)[-1])) if lines else ""
