"""Hooks of the job script: record each attempt, and decide what follows it.

    python -m orchestrator.jobs.job_hooks begin RUN NODES     prints the attempt, and the list and
                            number of the nodes it runs on; nothing if there is nothing left to do
    python -m orchestrator.jobs.job_hooks end RUN ATTEMPT CODE STATE [signalled]   prints the next
                            action: `restart`, the healthy nodes, and the seconds to wait;
                            `requeue` or `resubmit` and the nodes to exclude from then on; or the
                            job's exit code

Only the reply goes to stdout; messages for people go to stderr, which is the job's output.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import parse
from orchestrator.config.schema import Config, Slurm
from orchestrator.jobs.allocation import (
    Allocation,
    bad_nodes,
    job_key,
    num_nodes,
    read_allocation,
    restart_obstacle,
)
from orchestrator.jobs.failure_cause import find_failure_cause, read_srun_log
from orchestrator.run.notify import notify_end
from orchestrator.run.outcome import ExitCode, RunOutcome, read_attempts, record_lost_attempts
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from orchestrator.tracking.shipping.run_plots import wants_plots
from slurm import client
from slurm.errors import SlurmError
from slurm.node_failure import lost_node

_DISK_WAIT_S, _DISK_POLL_S = 300.0, 10.0  # for free space on the disk of the run directory
_FIRST_PAUSE_S, _MAX_PAUSE_S = 30.0, 300.0  # before attempts in the same job; doubled each time
T = TypeVar("T")
Next = Literal["restart", "requeue", "resubmit"] | int


class StopRequested(Exception):  # noqa: N818  # not an error
    """The run is to stay stopped."""


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
    """The exit code of the job, or the way in which it continues; and the reason.

    Args:
        next: `restart` is the next attempt in the same job; the others give the nodes back.
        nodes: the healthy nodes, with `restart`; else those that are excluded from then on.
        pause_s: the time to wait before a `restart`.
    """

    next: Next
    why: str
    nodes: str = ""
    pause_s: float = 0


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


def restart_or_requeue(
    crash: NextAction, allocation: Allocation | None, slurm: Slurm
) -> NextAction:
    """Decide whether the attempt that follows a crash is made in the same job."""
    if allocation is None:
        return crash
    obstacle = restart_obstacle(
        allocation,
        signal_delay_s=slurm.signal_delay_s,
        max_failures=slurm.max_consecutive_failures,
    )
    if obstacle:
        return NextAction("requeue", f"{crash.why}, in another job: {obstacle}")
    return NextAction("restart", crash.why, ",".join(allocation.nodes), allocation.pause_s)


def pause_s(failures: int) -> float:
    """Return the time to wait after failures in a row without a new checkpoint.

    The first is followed at once. What lasts for minutes (a file system, a driver) must not use up
    all attempts meanwhile.
    """
    return 0 if failures < 2 else min(_FIRST_PAUSE_S * 2 ** (failures - 2), _MAX_PAUSE_S)


def on_job_start(run: RunDir, nodes: str) -> str:
    """Record a new attempt; return its number and nodes, or nothing if nothing is left to do.

    Args:
        nodes: the healthy nodes of the job, as a list of Slurm.

    Raises:
        StopRequested: the stop file exists.
    """
    record_lost_attempts(run, partial(_describe_lost, run))
    if run.is_finished:
        _log(f"{run.path} is finished")
        return ""
    if run.stop_file.exists():
        raise StopRequested(f"{run.stop_file} exists: remove it, and submit again")
    run.lock_file.write_text(f"Slurm job {job_key()} on {socket.gethostname()}")
    config = parse(run.read_config())
    bad = bad_nodes(run, config)  # come last: a new job may have them again
    names = sorted(client.node_names(nodes), key=bad.__contains__)
    number = num_nodes(run, config, len(names))
    if number is None:
        raise RunError(
            f"slurm.nodes={config.slurm.nodes} cannot run on the {len(names)} nodes of this job",
            value=names,
            hint="Submit it with `tahoe resume`, or without `sbatch --nodes`.",
        )
    chosen = client.node_list(names[:number])
    attempt = run.begin_attempt(
        launcher="slurm",
        world_size=number * config.slurm.ranks_per_node,
        slurm_job_id=job_key(),
        slurm_restart_count=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        nodes=chosen,
    )
    run.log_dir(attempt).mkdir(parents=True)
    return f"{attempt} {chosen} {number}"


def on_job_end(
    run: RunDir, attempt: int, code: int, state: str, *, is_signalled: bool = False
) -> NextAction:
    """Record the end of an attempt and return the next action.

    Args:
        is_signalled: the job script was asked to stop, by a signal.
    """
    config = parse(run.read_config())
    left = run.read_json(run.outcome_file) or {}
    outcome = left["outcome"] if left.get("attempt") == attempt else None
    last_step = _last_saved_step(run, config)
    cause = find_failure_cause(run, attempt, code)
    is_crash = outcome is None and _job_still_running(state) and not cause.is_transient
    # A job that Slurm ends has its ranks killed, which is no fault of their nodes.
    failed_node = cause.node if is_crash else lost_node(read_srun_log(run, attempt))
    crashes = 1 + _crashes_before(run, last_step) if is_crash else 0
    action = choose_next_action(
        AttemptEnd(outcome, state, crashes, cause.why),
        stop_requested=run.stop_file.exists(),
        max_failures=config.slurm.max_consecutive_failures,
    )
    if outcome is None and action.next == "requeue":
        repeats = 0 if is_crash else 1 + _lost_before(run, last_step)
        allocation = read_allocation(
            *(run, config, attempt, failed_node),
            is_signalled=is_signalled,
            pause_s=pause_s(max(crashes, repeats)),
            repeats=repeats,
        )
        action = restart_or_requeue(action, allocation, config.slurm)
    facts = {
        "exit_code": code if outcome is None else ExitCode[outcome.upper()],
        "step": left.get("step") if outcome else None,
        "checkpoint_step": last_step,
        "crashed": is_crash,
        "lost": outcome is None and cause.is_transient,  # it neither gained nor proved anything
        **(run.attempt_outcome(attempt) or {"why": action.why}),
        "slurm_state": state,
        "failed_node": failed_node,
        "next": action.next,
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
    if config.tracking.enabled and wants_plots(run):  # Slurm ends all processes of a job with it
        _log(f"plots for MLflow: tahoe sync {run.shell_path} on the submit host draws them")
    notify_end(run, config.notify, attempt, action.next, action.why, log=_log)
    gives_up_nodes = action.next in ("requeue", "resubmit")
    return action._replace(nodes=excluded_nodes(run)) if gives_up_nodes else action


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
    """Return the nodes of `slurm.exclude` and those that attempts have died of.

    Empty as long as there are none of the latter.
    """
    config = parse(run.read_config())
    bad = bad_nodes(run, config)
    if not bad:
        return ""
    _log(f"excluded from now on: {', '.join(bad)}; two attempts or more died of it")
    return ",".join(filter(None, [config.slurm.exclude, *bad]))


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


def _lost_before(run: RunDir, last_step: int) -> int:
    """Count the attempts in a row, up to the last, that were lost at the checkpoint `last_step`."""
    ends = [line for line in read_json_lines(run.attempts_file) if "ended_s" in line]
    lost = (e.get("lost") and e.get("checkpoint_step") == last_step for e in reversed(ends))
    return sum(1 for _ in takewhile(bool, lost))


def _describe_lost(run: RunDir, number: int, attempt: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the reason of an attempt that could not record its end, and the node it died of."""
    node = lost_node(read_srun_log(run, number)) or _down_node(attempt.get("nodes"))
    return {"why": "a node was lost, or Slurm killed it", "failed_node": node}


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
            print(_retry_while_disk_full(partial(on_job_start, run, arguments[2]), _DISK_WAIT_S))
        else:
            attempt, code, state, *signalled = arguments[2:]
            action = on_job_end(run, int(attempt), int(code), state, is_signalled=bool(signalled))
            next_action = action.next if isinstance(action.next, str) else int(action.next)
            pause = f" {action.pause_s:g}" if action.next == "restart" else ""
            print(f"{next_action} {action.nodes}".rstrip() + pause)
    except StopRequested as request:
        _log(str(request))
        return ExitCode.STOPPED
    except (RunError, SlurmError) as error:
        _log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
