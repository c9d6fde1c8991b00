"""Hooks of the job script: record each attempt, and decide what follows it.

    python -m orchestrator.jobs.job_hooks begin RUN              prints the attempt, or nothing
    python -m orchestrator.jobs.job_hooks end RUN ATTEMPT CODE STATE    prints the next action, and
                                 after `requeue` and `resubmit` the nodes to exclude from then on

Only the reply goes to stdout; messages for people go to stderr, which is the job's output.
"""

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import parse
from orchestrator.config.schema import Config
from orchestrator.jobs.failure_cause import find_failure_cause, read_srun_log
from orchestrator.run.notify import notify_end
from orchestrator.run.outcome import ExitCode, RunOutcome, read_attempts
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from slurm import client
from slurm.errors import SlurmError
from slurm.node_failure import lost_node

_DISK_WAIT_S, _DISK_POLL_S = 300.0, 10.0  # for free space on the disk of the run directory
T = TypeVar("T")
Next = Literal["requeue", "resubmit"] | int


class AttemptEnd(NamedTuple):
    """The end of an attempt.

    Args:
        outcome: the outcome that the ranks agreed on; None if they left none.
        state: the job's state and reason as squeue prints them; empty if Slurm did not answer.
            Any state but RUNNING means that Slurm itself is ending the job.
        crashes: the crashes in a row without a new checkpoint, this one included.
        why: the cause of the crash.
    """

    outcome: str | None
    state: str
    crashes: int
    why: str = ""


class NextAction(NamedTuple):
    """The exit code of the job, or the way in which it continues; and the reason."""

    next: Next
    why: str


def choose_next_action(ended: AttemptEnd, *, stop_requested: bool, max_failures: int) -> NextAction:
    """Decide whether the run ends, and how it continues otherwise."""
    if ended.outcome == "finished":
        action = NextAction(ExitCode.FINISHED, "finished")
    elif ended.outcome == "failed_permanently":
        action = NextAction(
            ExitCode.FAILED_PERMANENTLY, "the run would end the same if started again"
        )
    elif stop_requested:
        action = NextAction(ExitCode.STOPPED, "stopped, as control/stop requests")
    elif ended.state.endswith("TimeLimit"):
        action = NextAction("resubmit", "the time limit came before the ranks had saved")
    elif not _job_still_running(ended.state):
        state = ended.state.removesuffix(" None")
        action = NextAction(ExitCode.STOPPED, f"Slurm ends this job itself ({state})")
    elif ended.outcome == "stopped":
        action = NextAction("requeue", "saved before the time limit or a preemption; continues")
    elif ended.crashes > max_failures:
        why = (
            f"crashed {ended.crashes} times in a row without a new checkpoint, and "
            f"slurm.max_consecutive_failures allows {max_failures}. The last time: {ended.why}. "
            "Read the logs, fix the cause, then `tahoe resume` the run"
        )
        action = NextAction(ExitCode.FAILED_PERMANENTLY, why)
    else:
        action = NextAction("requeue", f"{ended.why}; tries again")
    return action


def on_job_start(run: RunDir) -> str:
    """Record a new attempt and return its number; empty if nothing is left to do."""
    _record_lost_attempts(run)
    if run.is_finished:
        _log(f"{run.path} is finished")
        return ""
    if run.stop_file.exists():
        _log(f"{run.stop_file} exists: remove it, and submit again")
        return ""
    environ = os.environ
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    run.lock_file.write_text(f"Slurm job {job} on {socket.gethostname()}")
    attempt = run.begin_attempt(
        launcher="slurm",
        world_size=parse(run.read_config()).world_size,
        slurm_job_id=job,
        slurm_restart_count=int(environ.get("SLURM_RESTART_COUNT", 0)),
        nodes=environ["SLURM_JOB_NODELIST"],
    )
    run.log_dir(attempt).mkdir(parents=True)
    return str(attempt)


def on_job_end(run: RunDir, attempt: int, code: int, state: str) -> Next:
    """Record the end of an attempt and return the next action."""
    config = parse(run.read_config())
    left = run.read_json(run.outcome_file) or {}
    outcome = left["outcome"] if left.get("attempt") == attempt else None
    last_step = _last_saved_step(run, config)
    cause = find_failure_cause(run, attempt, code)
    is_crash = outcome is None and _job_still_running(state) and not cause.is_transient
    crashes = 1 + _crashes_before(run, last_step) if is_crash else 0
    action = choose_next_action(
        AttemptEnd(outcome, state, crashes, cause.why),
        stop_requested=run.stop_file.exists(),
        max_failures=config.slurm.max_consecutive_failures,
    )
    facts = {
        "exit_code": code if outcome is None else ExitCode[outcome.upper()],
        "step": left.get("step") if outcome else None,
        "checkpoint_step": last_step,
        "crashed": is_crash,
        "lost": outcome is None and cause.is_transient,  # it neither gained nor proved anything
        **(run.attempt_outcome(attempt) or {"why": action.why}),
        "slurm_state": state,
        # A job that Slurm ends has its ranks killed, which is no fault of their nodes.
        "failed_node": cause.node if is_crash else lost_node(read_srun_log(run, attempt)),
    }

    def record() -> None:
        if outcome is None and action.next == ExitCode.FAILED_PERMANENTLY:
            RunOutcome("failed_permanently", None, action.why).write(run, attempt)
        run.end_attempt(attempt, **facts)

    # A full disk must not decide what comes next: the job would end although it could continue.
    try:
        _retry_while_disk_full(record, _DISK_WAIT_S if _job_still_running(state) else 0)
    except OSError as error:
        _log(f"the end of attempt {attempt} cannot be recorded: {error}")
    _log(f"attempt {attempt}: {action.why}; next: {action.next}")
    notify_end(run, config.notify, attempt, action.next, action.why, log=_log)
    return action.next


def _last_saved_step(run: RunDir, config: Config) -> int:
    """Return the step of the newest checkpoint; the last known one if the store is out of reach."""
    try:
        return max([0, *CheckpointStore.for_run(run, config).steps()])
    except OSError as error:  # for example expired keys, which the next attempt may have renewed
        _log(f"the checkpoints cannot be listed: {error}")
        return max(int(line.get("checkpoint_step") or 0) for line in read_attempts(run).values())


def _retry_while_disk_full(write: Callable[[], T], wait_s: float) -> T:
    """Write to the run directory; retry failed writes for `wait_s` seconds, then raise OSError."""
    until_s = time.monotonic() + wait_s
    while True:
        try:
            return write()
        except OSError as error:
            if time.monotonic() >= until_s:
                raise
            _log(f"the run directory cannot be written, so this waits for free space: {error}")
        time.sleep(_DISK_POLL_S)


def _log(text: str) -> None:
    """Write a line to the job's output, unless that cannot be written."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def excluded_nodes(run: RunDir) -> str:
    """Return the nodes of `slurm.exclude` and those that two attempts have died of.

    Empty as long as there are none of the latter.
    """
    deaths = Counter(line.get("failed_node") for line in read_attempts(run).values())
    bad = [node for node, count in sorted(deaths.items(), key=str) if node and count >= 2]
    if not bad:
        return ""
    _log(f"excluded from now on: {', '.join(bad)}; two attempts died of it")
    return ",".join(filter(None, [parse(run.read_config()).slurm.exclude, *bad]))


def _job_still_running(state: str) -> bool:
    """Check whether Slurm lets a job run; without an answer of Slurm, assume so."""
    return not state or state.startswith("RUNNING")


def _crashes_before(run: RunDir, last_step: int) -> int:
    """Count the crashes in a row whose newest checkpoint is `last_step`."""
    count = 0
    ends = [line for line in read_json_lines(run.attempts_file) if "ended_s" in line]
    for line in reversed(ends):
        if line.get("crashed") and line.get("checkpoint_step") == last_step:
            count += 1
        elif line.get("crashed") or not line.get("lost"):
            break
    return count


def _record_lost_attempts(run: RunDir) -> None:
    """Record the end of attempts that could not do so: their node was lost, or they were killed."""
    for number, attempt in sorted(read_attempts(run).items()):
        if "ended_s" in attempt:
            continue
        if outcome := run.attempt_outcome(number):  # killed while it waited for something else
            run.end_attempt(number, **outcome)
            continue
        run.end_attempt(
            number,
            lost=True,
            why="a node was lost, or Slurm killed it",
            failed_node=lost_node(read_srun_log(run, number)) or _down_node(attempt.get("nodes")),
        )


def _down_node(nodes: str | None) -> str | None:
    """Return the first of an attempt's nodes that is down: srun may be lost with it."""
    if nodes is None:  # the attempt was not a job
        return None
    try:
        return next(iter(client.down_nodes(nodes)), None)
    except SlurmError:
        return None


def main(arguments: Sequence[str]) -> int:
    hook, run = arguments[0], RunDir(Path(arguments[1]))
    try:
        if hook == "begin":
            print(_retry_while_disk_full(partial(on_job_start, run), _DISK_WAIT_S))
        else:
            attempt, code, state = arguments[2:]
            action = on_job_end(run, int(attempt), int(code), state)
            print(f"{action} {excluded_nodes(run)}" if isinstance(action, str) else int(action))
    except RunError as error:
        _log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
