"""The shipper as rank 0 starts it: real processes, signals and kills."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tracked_run import CreateTrackedRun, Eventually, StartProcess, TrackedRun

from orchestrator.tracking.shipping.parent_watch import ParentWatch, RetryTimeoutError
from orchestrator.tracking.shipping.shipper import _follow_run, _lock, sync

DEADLINE_S = 60
# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def end(process):
    """Close stdin, as the death of rank 0 does; return what was printed."""
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def test_a_run_from_its_first_point_to_its_end(
    tracked: TrackedRun, ship: StartProcess, eventually: Eventually
) -> None:
    tracked.run.begin_attempt()
    tracked.log(1, {"train/loss": 2.5})
    shipper = ship(tracked)
    eventually(lambda: tracked.is_shipped)
    assert tracked.mlflow_run().info.status == "RUNNING"

    # What Ctrl-C, Slurm's warning and the end of an allocation send to every process of a job.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM):
        shipper.send_signal(number)
    tracked.log(2, {"train/loss": 1.5, "val/top1": 50.0})
    eventually(lambda: tracked.is_shipped)
    assert tracked.mlflow_run().info.status == "RUNNING"

    tracked.log(3, {"train/loss": 1.0})
    tracked.write_outcome("finished", 1, "all 3 steps")
    assert end(shipper) == (0, "", "")
    assert tracked.mlflow_points() == tracked.logged_points()
    assert tracked.mlflow_run().info.status == "FINISHED"
    assert tracked.mlflow_run().data.tags["tahoe.outcome"] == "finished: all 3 steps"
    log = tracked.run.path.joinpath("logs", "shipper.log").read_text().splitlines()
    assert all(line[:4].isdigit() for line in log)


def test_a_killed_shipper_leaves_nothing_undone(
    tracked: TrackedRun, ship: StartProcess, eventually: Eventually
) -> None:
    tracked.run.begin_attempt()
    for step in range(1, 1501):
        tracked.log(step, dict.fromkeys("abcd", step / 7))
    shipper = ship(tracked)
    eventually(lambda: tracked.num_shipped_bytes)
    shipper.send_signal(signal.SIGKILL)
    assert shipper.wait(DEADLINE_S) == -signal.SIGKILL
    assert not tracked.is_shipped

    second = tracked.run.begin_attempt()
    for step in range(1400, 1601):
        tracked.log(step, dict.fromkeys("abcd", -1), attempt=second)
    # The killed one may have sent a batch and not lived to note it: that batch is sent again.
    tracked.run.write_json(tracked.run.mlflow_file, {**tracked.mlflow_state, "shipped_bytes": {}})
    tracked.write_outcome("stopped", second)
    assert end(ship(tracked))[0] == 0
    assert tracked.is_shipped
    assert tracked.mlflow_points() == tracked.logged_points()
    assert len(tracked.mlflow_points()) == 4 * 1600
    assert tracked.mlflow_run().info.status == "KILLED"
    assert tracked.mlflow_run().data.tags["tahoe.attempts"] == "2"


FOUR_AT_ONCE = """
import os, sys
from pathlib import Path
from orchestrator.tracking.mlflow_store import run
from orchestrator.tracking.shipping import shipper
children = []
for path in sys.argv[1:]:
    children.append(os.fork())  # MLflow is imported once for all, so that they meet at the store
    if children[-1] == 0:
        shipper.sync(Path(path))
        os._exit(0)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.slow
def test_four_first_runs_at_once(create_tracked_run: CreateTrackedRun, start: StartProcess) -> None:
    tracked_runs = [create_tracked_run(f"run-{i}") for i in range(4)]
    for tracked in tracked_runs:
        tracked.log(1, {"a": 1})
    assert end(start("-c", FOUR_AT_ONCE, *(tracked.run.path for tracked in tracked_runs))) == (
        0,
        "",
        "",
    )
    client = tracked_runs[0].client()
    assert {known.name for known in client.search_experiments()} == {"Default", "tests"}
    (experiment,) = {tracked.mlflow_state["experiment_id"] for tracked in tracked_runs}
    found = client.search_runs([experiment])
    assert {run.info.run_name for run in found} == {"run-0", "run-1", "run-2", "run-3"}
    assert all(run.data.metrics == {"a": 1.0} for run in found)


def test_a_dead_server_is_given_up_after_the_end_of_the_run(
    create_tracked_run: CreateTrackedRun, ship: StartProcess, free_port: int
) -> None:
    tracked = create_tracked_run(uri=f"http://me:hunter2@127.0.0.1:{free_port}")
    tracked.log(1, {"a": 1})
    code, out, err = end(ship(tracked, "--flush-timeout-s", 1))
    assert (code, out) == (1, "")
    assert f"`tahoe sync {tracked.run.shell_path}`" in err
    log = tracked.run.path.joinpath("logs", "shipper.log").read_text()
    assert "retrying in" in log
    assert "hunter2" not in err + log
    assert not tracked.run.mlflow_file.exists()


def test_an_old_shipper_leaves_the_status_to_the_next(
    tracked: TrackedRun, follow, eventually: Eventually
) -> None:
    tracked.run.begin_attempt()
    tracked.log(1, {"a": 1})
    old = follow(tracked)
    eventually(lambda: tracked.is_shipped)
    tracked.run.begin_attempt()
    new = follow(tracked)
    tracked.log(2, {"a": 2}, attempt=2)
    old.end()
    assert tracked.mlflow_run().info.status == "RUNNING"
    new.end()
    assert tracked.mlflow_points() == tracked.logged_points()
    assert tracked.mlflow_run().info.status == "FAILED"
    assert "attempt 2 left no outcome" in tracked.mlflow_run().data.tags["tahoe.outcome"]


def test_sigterm_alone_is_no_end_of_the_run(
    tracked: TrackedRun, follow, eventually: Eventually
) -> None:
    tracked.run.begin_attempt()
    tracked.log(1, {"a": 1})
    shipper = follow(tracked, flush_timeout_s=0.5)
    eventually(lambda: tracked.is_shipped)
    shipper.parent.start_deadline()  # what SIGTERM calls; rank 0 still holds the pipe
    with pytest.raises(RetryTimeoutError, match="SIGTERM"):
        shipper.done.result(DEADLINE_S)
    assert tracked.mlflow_points() == tracked.logged_points()
    assert tracked.mlflow_run().info.status == "RUNNING"


def test_rank_0_may_end_before_the_first_point_is_sent(
    tracked: TrackedRun, follow, eventually: Eventually
) -> None:
    tracked.run.begin_attempt()
    with _lock(tracked.run):  # something keeps the shipper waiting
        shipper = follow(tracked)
        tracked.log(1, {"a": 1})
        shipper.close()
        eventually(lambda: shipper.parent.ended)
    shipper.done.result(DEADLINE_S)
    assert tracked.mlflow_points() == tracked.logged_points()
    assert tracked.mlflow_run().info.status == "FAILED"


@pytest.fixture
def follow():
    """Starts shippers as threads of this process: importing MLflow again takes seconds."""
    with ThreadPoolExecutor() as pool, ExitStack() as pipes:
        yield lambda tracked, **settings: pipes.enter_context(Follower(pool, tracked, **settings))


class Follower:
    def __init__(self, pool, tracked, flush_timeout_s=60.0):
        read, self._rank_0 = os.pipe()
        self.parent = ParentWatch(flush_timeout_s, read)
        self.done = pool.submit(_follow_run, tracked.run, tracked.run.read_config(), self.parent)
        self.done.add_done_callback(lambda _: os.close(read))

    def close(self):
        if self._rank_0 is not None:
            os.close(self._rank_0)
        self._rank_0 = None

    def end(self):
        self.close()
        self.done.result(DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_no_run_there(ship: StartProcess, tracked: TrackedRun, tmp_path: Path) -> None:
    tracked.run = type(tracked.run)(tmp_path / "nothing")
    code, _, err = end(ship(tracked))
    assert code == 2
    assert "no run at" in err
    assert not tracked.run.path.exists()


def test_each_record_may_be_larger_than_a_batch(tracked: TrackedRun) -> None:
    tracked.log(1, {f"class {i}": i for i in range(1001)})
    tracked.append(json.dumps({"step": 2}) + "\n")
    tracked.log(2, {"a": 1})
    sync(tracked.run.path)
    assert len(tracked.mlflow_points()) == 1002


def test_a_clock_that_jumps_loses_and_doubles_nothing(tracked: TrackedRun) -> None:
    for step, time_ms in enumerate((5000, 1000, 1000, 9000, 2000), start=1):
        record = {"step": step, "time_ms": time_ms, "attempt": 1, "metrics": {"a": step / 7}}
        tracked.append(json.dumps(record) + "\n")
        sync(tracked.run.path)
    tracked.run.mlflow_file.write_text("{}")  # the acknowledgement of all of them is lost
    sync(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()
    assert len(tracked.logged_points()) == 5


def test_a_file_that_was_cut_is_sent_anew(tracked: TrackedRun) -> None:
    tracked.run.begin_attempt()
    for step in range(1, 9):
        tracked.log(step, {"train/loss": step / 7})
    sync(tracked.run.path)
    lines = tracked.run.metrics_file.read_text().splitlines(keepends=True)
    tracked.run.metrics_file.write_text("".join(lines[:2]))  # put back from an older copy
    tracked.log(9, {"train/loss": 0.5, "val/top1": 50.0}, attempt=2)
    assert not tracked.is_shipped
    sync(tracked.run.path)
    assert tracked.logged_points().items() <= tracked.mlflow_points().items()
    assert tracked.is_shipped
