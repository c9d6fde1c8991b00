"""The shipper: a process beside rank 0 that copies metrics.jsonl to MLflow while the run goes on.

    python -m orchestrator.tracking.shipping.shipper RUN

Training writes to the run directory and never waits for MLflow; the shipper reads from there. It
ends when rank 0 has ended, told by the end-of-file on its stdin: then it sends what is left, sets
the status by the verdict, and exits. A dead server is tried again with growing pauses for as long
as rank 0 lives. Nothing depends on the shipper's own life: MLflow drops a point that it already
has, and `sync` sends what a killed shipper left.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.redact import one_line_error
from orchestrator.run.metric_stream import MetricTail, is_end_of_line
from orchestrator.run.outcome import RunState, read_attempts, read_run_state, running_state
from orchestrator.run.rundir import RunDir, RunError, hold
from orchestrator.tracking.shipping.parent_watch import (
    ParentWatch,
    Retry,
    RetryTimeoutError,
    SupersededError,
    log,
)

if TYPE_CHECKING:  # MLflow takes two seconds to import; signals must be handled before that
    from orchestrator.tracking.mlflow_store.run import MlflowRun

BATCH_POINTS = 1000
_LOCK_POLL_S = 0.2
Do = Callable[[Callable[[], Any]], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Ship a run until rank 0 has ended; return 0 when all of it is in MLflow, else 1."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking.shipping.shipper")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--flush-timeout-s", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    run, lifeline = RunDir(arguments.run.absolute()), ParentWatch(arguments.flush_timeout_s)
    lifeline.ignore_rank_signals()
    try:
        config = run.read_config()
    except RunError as error:
        parser.error(str(error))
    with os.fdopen(os.dup(2), "w") as terminal:
        _log_to(_log_file(run))
        try:
            refused = _follow_run(run, config, lifeline, partial(print, file=terminal))
            if refused:
                print(f"tracking: {_not_taken(run, refused)}", file=terminal)
        except SupersededError as error:
            log.info("a later attempt ships the rest; here it failed: %s", one_line_error(error))
        except (RetryTimeoutError, RunError) as error:
            log.error("gave up: %s", one_line_error(error))
            print(f"tracking: {_incomplete_message(run, error)}", file=terminal)
            return 1
    return 0


def sync(path: Path, wait_s: float = 10.0, never: str | None = None) -> None:
    """Send now what MLflow lacks of a run, and set its status; one that is alive is RUNNING.

    Args:
        path: the run directory.
        wait_s: how long to wait for a shipper that is about to end.
        never: why no attempt will begin of a run that has had none, if that is so.

    Raises:
        RunError: there is no run, MLflow cannot be reached, or a shipper is at work.
    """
    run = RunDir(path.absolute())
    config = run.read_config()
    with _wait_for_lock(run, wait_s):
        from orchestrator.tracking.mlflow_store.client import MlflowException
        from orchestrator.tracking.mlflow_store.run import get_or_create_run
        from orchestrator.tracking.shipping.run_plots import PicturesError, upload_plots

        try:
            shipment = Shipper(get_or_create_run(run, config))
            shipment.tracked.log_metadata()
            shipment.flush()
            shipment.finalize(alive=bool(run.is_alive), never=never)
            shipment.tracked.log_artifacts()
            for name, how in shipment.tracked.rejected.reasons.items():
                print(f"warning: MLflow's server refuses {name}, which is {how}", file=sys.stderr)
            upload_plots(shipment.tracked)
        except PicturesError as error:
            print(f"the pictures of {run.id} were not drawn: {error}", file=sys.stderr)
        except (MlflowException, OSError) as error:
            raise RunError(_incomplete_message(run, error)) from error


class Shipper:
    """What goes from a run directory to an MLflow run; `do` does each step, and may repeat it."""

    def __init__(self, tracked: "MlflowRun", do: Do = lambda action: action()) -> None:
        self.tracked = tracked
        self._tail = MetricTail(tracked.run.metrics_file)
        self._system: dict[Path, MetricTail] = {}  # of the files of the nodes
        self._do = do
        self._told_rollbacks = ""

    def flush(self) -> None:
        """Send the points that have been logged since the last call."""
        self._send_new_of(self._tail)
        rollbacks = self._tail.sieve.rollbacks
        if rollbacks != self._told_rollbacks:
            self._do(partial(self.tracked.set_tags, {"tahoe.rollbacks": rollbacks}))
            self._told_rollbacks = rollbacks
        for file in sorted(self.tracked.run.system_dir.glob("*.jsonl")):
            self._send_new_of(self._system.setdefault(file, MetricTail(file)))

    def _send_new_of(self, tail: MetricTail) -> None:
        shipped_bytes = self.tracked.num_shipped_bytes(tail.file)
        if not is_end_of_line(tail.file, shipped_bytes):  # what is there now was never shipped
            shipped_bytes = 0  # all is sent again, and MLflow knows what it has
        for points, end_bytes in tail.batches(shipped_bytes, BATCH_POINTS):
            self._do(partial(self.tracked.log_points, points, tail.file, end_bytes))

    def finalize(self, *, alive: bool = False, never: str | None = None) -> None:
        """Set the status of the MLflow run to how the run directory stands."""
        run = self.tracked.run
        end = running_state(run.num_attempts) if alive else read_run_state(run)
        if never and end.state == "scheduled":
            end = RunState("stopped", 0, never)
        last = read_attempts(run).get(end.attempt, {}) | run.attempt_outcome(end.attempt)
        # Not when the launcher ended, which waited for this: a later sync must say the same.
        ended_s = last.get("trained_until_s") or last.get("ended_s")
        ended_ms = self._tail.sieve.last_time_ms if ended_s is None else int(ended_s * 1000)
        self._do(partial(self.tracked.set_status, end, ended_ms))


def _follow_run(
    run: RunDir,
    config: Mapping[str, Any],
    lifeline: ParentWatch,
    say: Callable[[str], None] = print,
) -> Mapping[str, str]:
    """Ship from now until rank 0 has ended; return what the server has refused."""
    attempt = run.num_attempts
    insist = Retry(lifeline, lambda: run.num_attempts > attempt)
    with insist(partial(_acquire_lock, run, lifeline)):
        tracked = insist(partial(_attach, run, config, say))
        insist(tracked.log_metadata)
        insist(partial(tracked.set_status, running_state(attempt)))
        log.info("attempt %d: shipping to the MLflow run %s", attempt, tracked.run_id)
        _upload(tracked)
        shipment = Shipper(tracked, insist)
        while not lifeline.ended:
            shipment.flush()
            lifeline.wait(float(config["tracking"].get("flush_interval_s", 2.0)))
            if lifeline.remaining_s == 0 and not lifeline.ended:
                raise RetryTimeoutError("SIGTERM came while the run went on")
        shipment.flush()  # what rank 0 logged since the last look and before its end
        if run.num_attempts == attempt:  # a later attempt has a shipper of its own
            shipment.finalize()
            _send_pictures(tracked)
        log.info("attempt %d: all is shipped", attempt)
        return tracked.rejected.reasons


def _attach(run: RunDir, config: Mapping[str, Any], say: Callable[[str], None]) -> "MlflowRun":
    from orchestrator.tracking.mlflow_store.run import get_or_create_run

    return get_or_create_run(run, config, say)


def _upload(tracked: "MlflowRun") -> None:
    """Send the artifacts, but let no artifact store keep the metrics waiting."""
    try:
        tracked.log_artifacts()
    except Exception as error:
        log.warning("the artifacts stay behind until `tahoe sync`: %s", one_line_error(error))


def _send_pictures(tracked: "MlflowRun") -> None:
    """Draw and send pictures, which are worth no failure."""
    from orchestrator.tracking.shipping.run_plots import upload_plots

    try:
        upload_plots(tracked)
    except Exception as error:
        log.warning("the pictures stay behind until `tahoe sync`: %s", one_line_error(error))


def _log_file(run: RunDir) -> Path:
    return run.path / "logs" / "shipper.log"


def _log_to(file: Path) -> None:
    """Write a timestamped line for each message, and whatever libraries print, to a file."""
    file.parent.mkdir(exist_ok=True)
    handler = logging.StreamHandler(file.open("a"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    for fd in (1, 2):
        os.dup2(handler.stream.fileno(), fd)


def _lock(run: RunDir) -> TextIO:
    """Return the open log, which is locked: whoever holds it is the only one to ship this run."""
    _log_file(run).parent.mkdir(exist_ok=True)
    with ExitStack() as unless_held:
        file = unless_held.enter_context(_log_file(run).open("a"))
        if not hold(file):
            raise BlockingIOError(f"another shipper of {run.id} is at work")
        unless_held.pop_all()
    return file


def _acquire_lock(run: RunDir, lifeline: ParentWatch) -> TextIO:
    """Return the lock of `_lock`, once the shipper of the attempt before has ended."""
    while True:
        try:
            return _lock(run)
        except BlockingIOError as error:
            if lifeline.remaining_s == 0:
                raise RetryTimeoutError(str(error)) from None
        lifeline.wait(_LOCK_POLL_S)


def _wait_for_lock(run: RunDir, wait_s: float) -> TextIO:
    until_s = time.monotonic() + wait_s
    while True:
        try:
            return _lock(run)
        except BlockingIOError as error:
            if time.monotonic() > until_s:
                raise RunError(
                    f"{error} and sends everything; see {_log_file(run)} for what it meets."
                ) from None
        time.sleep(0.1)


def _not_taken(run: RunDir, refused: Mapping[str, str]) -> str:
    some = ", ".join([*refused][:5])
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
    return f"MLflow's server refuses {some}{more}; all else is there. {_log_file(run)} says why."


def _incomplete_message(run: RunDir, error: Exception) -> str:
    return (
        f"not all of {run.path} has reached MLflow: {one_line_error(error)}. Nothing is lost, "
        f"metrics.jsonl has it all; run `tahoe sync {run.shell_path}` later."
    )


if __name__ == "__main__":
    sys.exit(main())
