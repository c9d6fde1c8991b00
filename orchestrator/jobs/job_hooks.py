"""What a job script does before and after the ranks: note the attempt, decide what comes next.

    python -m orchestrator.jobs.job_hooks begin RUN              prints the attempt, or nothing
    python -m orchestrator.jobs.job_hooks end RUN ATTEMPT CODE STATE    prints what comes next, and
                                 after `requeue` and `resubmit` the nodes that are excluded from it

Only the answer goes to stdout; everything for people goes to stderr, which is the job's output.
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
from orchestrator.run.exit_status import ExitCode, RunOutcome
from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from slurm import client
from slurm.errors import SlurmError
from slurm.node_failure import lost_node

_ROOM_WAIT_S, _ROOM_POLL_S = 300.0, 10.0  # for room on the disk of the run directory
T = TypeVar("T")
Next = Literal["requeue", "resubmit"] | int


class AttemptEnd(NamedTuple):
    """How an attempt ended.

    Args:
        verdict: what the ranks left; None where they left nothing.
        state: of the job as squeue says it, then a blank and the reason; nothing if it did not
            answer. Anything but RUNNING means that Slurm itself is ending the job.
        crashes: how often in a row, with this one, it crashed without a new checkpoint.
        why: it crashed, where it did.
    """

    verdict: str | None
    state: str
    crashes: int
    why: str = ""


class NextAction(NamedTuple):
    """What comes next, and why."""

    next: Next
    why: str


def choose_next_action(ended: AttemptEnd, *, stop_requested: bool, max_failures: int) -> NextAction:
    """Return what comes next: an exit code of the job, or that it goes on in another attempt."""
    if ended.verdict == "finished":
        decision = NextAction(ExitCode.FINISHED, "finished")
    elif ended.verdict == "never_restart":
        decision = NextAction(ExitCode.NEVER_RESTART, "the run would end the same if started again")
    elif stop_requested:
        decision = NextAction(ExitCode.STOPPED, "stopped, as control/stop asks for")
    elif ended.state.endswith("TimeLimit"):
        decision = NextAction("resubmit", "the time limit came before the ranks had saved")
    elif not _job_still_running(ended.state):
        decision = NextAction(
            ExitCode.STOPPED, f"Slurm ends this job itself ({ended.state.removesuffix(' None')})"
        )
    elif ended.verdict == "stopped":
        decision = NextAction("requeue", "saved before the time limit or a preemption; goes on")
    elif ended.crashes > max_failures:
        decision = NextAction(
            ExitCode.NEVER_RESTART,
            f"crashed {ended.crashes} times in a row without a new checkpoint, and "
            f"slurm.max_consecutive_failures allows {max_failures}. The last time: {ended.why}. "
            "Read the logs, "
            "mend it, then `tahoe resume` it",
        )
    else:
        decision = NextAction("requeue", f"{ended.why}; tries again")
    return decision


def on_job_start(run: RunDir) -> str:
    """Note that an attempt begins; return its number, or nothing if there is nothing to do."""
    _record_lost_attempts(run)
    if run.is_finished:
        _say(f"{run.path} is finished")
        return ""
    if run.stop_file.exists():
        _say(f"{run.stop_file} is there: remove it, and submit again")
        return ""
    config, environ = parse(run.read_config()), os.environ
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    run.lock_file.write_text(f"Slurm job {job} on {socket.gethostname()}")
    attempt = run.begin_attempt(
        launcher="slurm",
        world_size=config.world_size,
        slurm_job_id=job,
        slurm_restart_count=int(environ.get("SLURM_RESTART_COUNT", 0)),
        nodes=environ["SLURM_JOB_NODELIST"],
    )
    run.log_dir(attempt).mkdir(parents=True)
    return str(attempt)


def on_job_end(run: RunDir, attempt: int, code: int, state: str) -> Next:
    """Note how an attempt ended and return what comes next."""
    config = parse(run.read_config())
    verdict = run.read_json(run.outcome_file) or {}
    mine = verdict["verdict"] if verdict.get("attempt") == attempt else None
    last_step = _last_saved(run, config)
    cause = find_failure_cause(run, attempt, code)
    is_crash = mine is None and _job_still_running(state) and not cause.is_passing
    crashes = 1 + _crashes_before(run, last_step) if is_crash else 0
    decision = choose_next_action(
        AttemptEnd(mine, state, crashes, cause.why),
        stop_requested=run.stop_file.exists(),
        max_failures=config.slurm.max_consecutive_failures,
    )
    facts = {
        "exit_code": code if mine is None else ExitCode[mine.upper()],
        "step": verdict.get("step") if mine else None,
        "checkpoint_step": last_step,
        "crashed": is_crash,
        "lost": mine is None and cause.is_passing,  # nothing was gained or proved by it
        **(run.attempt_outcome(attempt) or {"why": decision.why}),
        "slurm_state": state,
        # Where Slurm itself ends a job it kills the ranks, which is no fault of their nodes.
        "failed_node": cause.node if is_crash else lost_node(read_srun_log(run, attempt)),
    }

    def note() -> None:
        if mine is None and decision.next == ExitCode.NEVER_RESTART:
            RunOutcome("never_restart", None, decision.why).write(run, attempt)
        run.end_attempt(attempt, **facts)

    # What comes next must not depend on it: the job would end for good, although it could go on.
    try:
        _wait_for_room(note, _ROOM_WAIT_S if _job_still_running(state) else 0)
    except OSError as error:
        _say(f"the end of attempt {attempt} cannot be noted: {error}")
    _say(f"attempt {attempt}: {decision.why}; next: {decision.next}")
    return decision.next


def _last_saved(run: RunDir, config: Config) -> int:
    """Return the step of the newest checkpoint, as it is known where the store cannot be asked."""
    try:
        return max([0, *CheckpointStore.for_run(run, config).steps()])
    except OSError as error:  # keys that have expired, which the next attempt may have again
        _say(f"the checkpoints cannot be listed: {error}")
        return max(int(line.get("checkpoint_step") or 0) for line in read_attempts(run).values())


def _wait_for_room(write: Callable[[], T], wait_s: float) -> T:
    """Write to the run directory; on a full disk try again, for some time.

    Raises:
        OSError: the last try failed too.
    """
    until_s = time.monotonic() + wait_s
    while True:
        try:
            return write()
        except OSError as error:
            if time.monotonic() >= until_s:
                raise
            _say(f"the run directory cannot be written, so this waits for room: {error}")
        time.sleep(_ROOM_POLL_S)


def _say(text: str) -> None:
    """Say something to people, unless the job's output cannot take it."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def excluded_nodes(run: RunDir) -> str:
    """Return the nodes that the next attempt is not to be given, as Slurm's options take them.

    They are those of the config, and each that two attempts have died of.
    """
    deaths = Counter(line.get("failed_node") for line in read_attempts(run).values())
    bad = [node for node, count in sorted(deaths.items(), key=str) if node and count >= 2]
    if not bad:
        return ""
    _say(f"excluded from now on: {', '.join(bad)}; two attempts died of it")
    return ",".join(filter(None, [parse(run.read_config()).slurm.exclude, *bad]))


def _job_still_running(state: str) -> bool:
    """Whether Slurm leaves a job alone; where it does not answer, that is what is hoped for."""
    return not state or state.startswith("RUNNING")


def _crashes_before(run: RunDir, last_step: int) -> int:
    """Return how often in a row it has crashed with this as the newest checkpoint."""
    count = 0
    for line in reversed([x for x in read_json_lines(run.attempts_file) if "ended_s" in x]):
        if not line.get("crashed"):
            if line.get("lost"):
                continue  # it neither crashed nor got anywhere
            break
        if line.get("checkpoint_step") != last_step:
            break
        count += 1
    return count


def _record_lost_attempts(run: RunDir) -> None:
    """Note the end of an attempt that could not do so: its node is gone, or was told to."""
    for number, known in sorted(read_attempts(run).items()):
        if "ended_s" in known:
            continue
        if agreed := run.attempt_outcome(number):  # killed while it waited for something else
            run.end_attempt(number, **agreed)
            continue
        run.end_attempt(
            number,
            lost=True,
            why="a node was lost, or Slurm killed it",
            failed_node=lost_node(read_srun_log(run, number)) or _down_node(known.get("nodes")),
        )


def _down_node(nodes: str | None) -> str | None:
    """Return the first of an attempt's nodes that is down: with it, srun itself may be lost."""
    if nodes is None:  # it was none of Slurm's
        return None
    try:
        return next(iter(client.down_nodes(nodes)), None)
    except SlurmError:
        return None


def main(arguments: Sequence[str]) -> int:
    verb, run = arguments[0], RunDir(Path(arguments[1]))
    try:
        if verb == "begin":
            print(_wait_for_room(partial(on_job_start, run), _ROOM_WAIT_S))
        else:
            attempt, code, state = arguments[2:]
            answer = on_job_end(run, int(attempt), int(code), state)
            print(f"{answer} {excluded_nodes(run)}" if isinstance(answer, str) else int(answer))
    except RunError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
