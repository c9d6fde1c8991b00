"""The shipper: a process beside rank 0 that copies metrics.jsonl to MLflow during the run.

    python -m orchestrator.tracking.shipping.shipper RUN

Training writes to the run directory and never waits for MLflow; the shipper reads from there. The
end-of-file on its stdin means that rank 0 has ended: it then sends the rest, sets the status by the
outcome, and exits. A dead server is retried with growing pauses for as long as rank 0 lives.
Nothing depends on the shipper's own life: MLflow drops a point that it already has, and `sync`
sends the rest after a killed shipper.
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

from orchestrator.gc_frozen import freeze_gc_at_exit, gc_frozen
from orchestrator.redact import one_line_error
from orchestrator.run.metric_stream import MetricTail, is_end_of_line
from orchestrator.run.node_times import slow_nodes
from orchestrator.run.outcome import RunState, read_attempts, read_run_state, running_state
from orchestrator.run.rundir import RunDir, RunError, hold
from orchestrator.tracking.shipping.parent_watch import (
    ParentWatch,
    Retry,
    RetryTimeoutError,
    SupersededError,
    log,
)
from orchestrator.tracking.shipping.run_plots import PlotsError, sync_plots

if TYPE_CHECKING:  # MLflow takes two seconds to import; signals must be handled before that
    from orchestrator.tracking.mlflow_store.run import MlflowRun

BATCH_POINTS = 1000
_LOCK_POLL_S = 0.2
Do = Callable[[Callable[[], Any]], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Ship a run until rank 0 has ended; return 0 if all of it is in MLflow, else 1."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking.shipping.shipper")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--flush-timeout-s", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    run, parent = RunDir(arguments.run.absolute()), ParentWatch(arguments.flush_timeout_s)
    parent.ignore_rank_signals()
    freeze_gc_at_exit()
    try:
        config = run.read_config()
    except RunError as error:
        parser.error(str(error))
    with os.fdopen(os.dup(2), "w") as terminal:
        _log_to(_log_file(run))
        try:
            rejected = _follow_run(run, config, parent, partial(print, file=terminal))
            if rejected:
                print(f"tracking: {_rejected_message(run, rejected)}", file=terminal)
        except SupersededError as error:
            log.info("a later attempt ships the rest; here it failed: %s", one_line_error(error))
        except (RetryTimeoutError, RunError) as error:
            log.error("gave up: %s", one_line_error(error))
            print(f"tracking: {_incomplete(run, error)}", file=terminal)
            return 1
    return 0


def sync(path: Path, wait_s: float = 10.0, never: str | None = None) -> None:
    """Send the rest of a run to MLflow now, and set its status: RUNNING if it is alive.

    Args:
        path: the run directory.
        wait_s: the time to wait for a shipper that is about to end.
        never: the reason why no attempt will start of a run without attempts, if so.

    Raises:
        RunError: there is no run, MLflow cannot be reached, or a shipper is running.
    """
    run = RunDir(path.absolute())
    config = run.read_config()
    with _wait_for_lock(run, wait_s):
        from orchestrator.tracking.mlflow_store.client import MlflowException
        from orchestrator.tracking.mlflow_store.run import get_or_create_run

        try:
            tracked = get_or_create_run(run, config)
            shipper = Shipper(tracked)
            tracked.log_metadata()
            shipper.flush()
            shipper.finalize(alive=bool(run.is_alive), never=never)
            tracked.log_artifacts()
            for name, reason in tracked.rejected.reasons.items():
                print(
                    f"warning: MLflow's server rejects {name}, which is {reason}", file=sys.stderr
                )
        except (MlflowException, OSError) as error:
            raise _incomplete(run, error) from error
    try:  # without the lock, which the next attempt's shipper waits for
        sync_plots(run)
    except PlotsError as error:
        print(f"the plots of {run.id} were not drawn: {error}", file=sys.stderr)
    except (MlflowException, OSError) as error:
        raise _incomplete(run, error) from error


class Shipper:
    """Copies a run directory to its MLflow run.

    Args:
        do: a function that runs each step, and may repeat it.
    """

    def __init__(self, tracked: "MlflowRun", do: Do = lambda action: action()) -> None:
        self.tracked = tracked
        self._metrics = MetricTail(tracked.run.metrics_file)
        self._system_metrics: dict[Path, MetricTail] = {}  # by the file of the node
        self._do = do
        self._sent_rollbacks = ""
        self._sent_slow_nodes: str | None = None

    def flush(self) -> None:
        """Send the points that have been logged since the last call."""
        self._send_new_points(self._metrics)
        rollbacks = self._metrics.deduplicator.rollbacks
        if rollbacks != self._sent_rollbacks:
            self._do(partial(self.tracked.set_tags, {"tahoe.rollbacks": rollbacks}))
            self._sent_rollbacks = rollbacks
        for file in sorted(self.tracked.run.system_dir.glob("*.jsonl")):
            self._send_new_points(self._system_metrics.setdefault(file, MetricTail(file)))
        self._tag_slow_nodes()

    def _tag_slow_nodes(self) -> None:
        """Name the slow nodes in a tag: with hundreds of nodes, a metric each would be too many."""
        run = self.tracked.run
        slow = "; ".join(map(str, slow_nodes(run)))
        if run.node_times_file.exists() and slow != self._sent_slow_nodes:
            self._do(partial(self.tracked.set_tags, {"tahoe.slow_nodes": slow}))
            self._sent_slow_nodes = slow

    def _send_new_points(self, tail: MetricTail) -> None:
        shipped_bytes = self.tracked.num_shipped_bytes(tail.file)
        if not is_end_of_line(tail.file, shipped_bytes):  # the file was replaced
            shipped_bytes = 0  # all is sent again; MLflow drops repeated points
        for points, end_bytes in tail.batches(shipped_bytes, BATCH_POINTS):
            self._do(partial(self.tracked.log_points, points, tail.file, end_bytes))

    def finalize(self, *, alive: bool = False, never: str | None = None) -> None:
        """Set the status of the MLflow run to the state of the run directory."""
        run = self.tracked.run
        state = running_state(run.num_attempts) if alive else read_run_state(run)
        if never and state.state == "scheduled":
            state = RunState("stopped", 0, never)
        last = read_attempts(run).get(state.attempt, {}) | run.attempt_outcome(state.attempt)
        # Not the end of the launcher, which waits for the shipper: a later sync must agree.
        ended_s = last.get("trained_until_s") or last.get("ended_s")
        ended_ms = (
            self._metrics.deduplicator.last_time_ms if ended_s is None else int(ended_s * 1000)
        )
        self._do(partial(self.tracked.set_status, state, ended_ms))


def _follow_run(
    run: RunDir,
    config: Mapping[str, Any],
    parent: ParentWatch,
    notify: Callable[[str], None] = print,
) -> Mapping[str, str]:
    """Ship from now until rank 0 has ended; return the values that the server has rejected."""
    attempt = run.num_attempts
    retry = Retry(parent, lambda: run.num_attempts > attempt)

    def attach() -> "MlflowRun":
        with gc_frozen():
            from orchestrator.tracking.mlflow_store.run import get_or_create_run

        return get_or_create_run(run, config, notify)

    def wait() -> bool:
        parent.wait(_LOCK_POLL_S)
        return parent.remaining_s > 0

    with retry(partial(_lock, run, wait)):
        tracked = retry(attach)
        retry(tracked.log_metadata)
        retry(partial(tracked.set_status, running_state(attempt)))
        log.info("attempt %d: shipping to the MLflow run %s", attempt, tracked.run_id)
        _try_once(tracked.log_artifacts, "the artifacts")
        shipper = Shipper(tracked, retry)
        while not parent.ended:
            shipper.flush()
            parent.wait(float(config["tracking"].get("flush_interval_s", 2.0)))
            if parent.remaining_s == 0 and not parent.ended:
                raise RetryTimeoutError("SIGTERM was received during the run")
        shipper.flush()  # the points between the last flush and the end of rank 0
        if run.num_attempts == attempt:  # a later attempt has a shipper of its own
            shipper.finalize()
            _try_once(tracked.log_long_record, "the record")
            _try_once(tracked.log_profiles, "the profile")
        log.info("attempt %d: all is shipped", attempt)
        return tracked.rejected.reasons


def _try_once(action: Callable[[], None], files: str) -> None:
    """Send files, but let no artifact store delay the metrics."""
    try:
        action()
    except Exception as error:
        log.warning("%s are not sent until `tahoe sync`: %s", files, one_line_error(error))


def _log_file(run: RunDir) -> Path:
    return run.path / "logs" / "shipper.log"


def _log_to(file: Path) -> None:
    """Write a timestamped line for each message, and any output of libraries, to a file."""
    file.parent.mkdir(exist_ok=True)
    handler = logging.StreamHandler(file.open("a"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    for fd in (1, 2):
        os.dup2(handler.stream.fileno(), fd)


def _lock(run: RunDir, wait: Callable[[], bool] = lambda: False) -> TextIO:
    """Open and lock the log, whose holder is the only process that ships the run.

    Args:
        wait: a function that waits a moment, and returns False when the time is over.

    Raises:
        BlockingIOError: another shipper has held it until then.
    """
    _log_file(run).parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        file = stack.enter_context(_log_file(run).open("a"))
        while not hold(file):
            if not wait():
                raise BlockingIOError(f"another shipper of {run.id} is running")
        stack.pop_all()
    return file


def _wait_for_lock(run: RunDir, wait_s: float) -> TextIO:
    deadline_s = time.monotonic() + wait_s

    def wait() -> bool:
        time.sleep(_LOCK_POLL_S)
        return time.monotonic() < deadline_s

    try:
        return _lock(run, wait)
    except BlockingIOError as error:
        raise RunError(
            f"{error} and sends everything", value=str(run.path), hint=f"See {_log_file(run)}."
        ) from None


def _rejected_message(run: RunDir, rejected: Mapping[str, str]) -> str:
    names = ", ".join([*rejected][:5])
    more = f" and {len(rejected) - 5} more" if len(rejected) > 5 else ""
    return f"MLflow's server rejects {names}{more}, and has all else; see {_log_file(run)}."


def _incomplete(run: RunDir, error: Exception) -> RunError:
    return RunError(
        f"not all of {run.path} has reached MLflow: {one_line_error(error)}. Nothing is lost, as "
        "metrics.jsonl has it all",
        value=str(run.path),
        hint=f"Run `tahoe sync {run.shell_path}` later.",
    )


if __name__ == "__main__":
    sys.exit(main())
