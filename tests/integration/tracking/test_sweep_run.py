"""The MLflow run of a sweep: one for all its runs, and as its runs stand."""

import shutil

import pytest
from tracked_run import TrackedRun

from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_store.client import open_client
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def tracked_runs(create_tracked_run):
    return [create_tracked_run(f"run-{i}") for i in range(3)]


@pytest.fixture
def sweep(tracked_runs, tmp_path):
    runs = [tracked.run for tracked in tracked_runs]
    sweep = SweepDir.of(tmp_path, runs)
    sweep.add((run, ["model=a", f"seed={i}"]) for i, run in enumerate(runs))
    return sweep


def parents(tracked):
    with open_client(tracked.uri) as client:
        found = client.search_runs([tracked.mlflow_run().info.experiment_id])
    return [run for run in found if "tahoe.sweep" in run.data.tags]


def parent_status(tracked):
    (parent,) = parents(tracked)
    return parent.info.status


def end(tracked, outcome):
    tracked.run.begin_attempt()
    tracked.write_outcome(outcome)
    sync(tracked.run.path)


def test_runs_of_a_sweep_have_one_parent(tracked_runs: list[TrackedRun], sweep: SweepDir) -> None:
    for tracked in (*tracked_runs, *tracked_runs):
        sync(tracked.run.path)
    (parent,) = parents(tracked_runs[0])
    assert {tracked.mlflow_run().data.tags["mlflow.parentRunId"] for tracked in tracked_runs} == {
        parent.info.run_id
    }
    assert parent.info.run_name == sweep.id
    assert parent.data.tags["tahoe.swept_keys"] == "seed=0,1,2"
    assert parent.data.tags["tahoe.sweep_dir"] == str(sweep.path)


@pytest.mark.slow
def test_a_sweep_at_the_path_of_one_that_was_deleted_has_a_parent_of_its_own(
    tracked_runs: list[TrackedRun], sweep: SweepDir
) -> None:
    sync(tracked_runs[0].run.path)
    (before,) = parents(tracked_runs[0])
    shutil.rmtree(sweep.path)
    sweep.add([(tracked_runs[1].run, ["seed=1"])])
    sync(tracked_runs[1].run.path)
    assert tracked_runs[0].mlflow_run().data.tags["mlflow.parentRunId"] == before.info.run_id
    assert tracked_runs[1].mlflow_run().data.tags["mlflow.parentRunId"] != before.info.run_id
    assert len(parents(tracked_runs[0])) == 2


def test_a_run_alone_has_none(tracked_runs: list[TrackedRun]) -> None:
    sync(tracked_runs[0].run.path)
    assert parents(tracked_runs[0]) == []
    assert "mlflow.parentRunId" not in tracked_runs[0].mlflow_run().data.tags


@pytest.mark.parametrize(
    ("last", "status"),
    [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed_permanently", "FAILED")],
)
def test_a_sweep_ends_with_its_last_run(
    tracked_runs: list[TrackedRun], sweep: SweepDir, last, status
) -> None:
    for tracked in tracked_runs:
        sync(tracked.run.path)
    assert parent_status(tracked_runs[0]) == "RUNNING"
    for tracked in tracked_runs[:2]:
        end(tracked, "finished")
        assert parent_status(tracked) == "RUNNING"
    end(tracked_runs[2], last)
    assert parent_status(tracked_runs[2]) == status
    with tracked_runs[0].run.lock():  # extended
        sync(tracked_runs[0].run.path)
        assert parent_status(tracked_runs[0]) == "RUNNING"


def test_a_point_that_will_never_begin_does_not_keep_a_sweep_running(
    tracked_runs: list[TrackedRun], sweep: SweepDir
) -> None:
    for tracked in tracked_runs:
        sync(tracked.run.path)
    for tracked in tracked_runs[:2]:
        end(tracked, "finished")
    assert parent_status(tracked_runs[0]) == "RUNNING"
    sync(tracked_runs[2].run.path, never="ended before an attempt began (job 7: CANCELLED)")
    assert parent_status(tracked_runs[0]) == "KILLED"
    assert tracked_runs[2].mlflow_run().info.status == "KILLED"
    assert "job 7: CANCELLED" in tracked_runs[2].mlflow_run().data.tags["tahoe.outcome"]
    with tracked_runs[2].run.lock():  # submitted again
        tracked_runs[2].run.begin_attempt()
        sync(tracked_runs[2].run.path, never="not true any more")
    assert parent_status(tracked_runs[0]) == "RUNNING"


@pytest.mark.slow
def test_points_one_after_the_other_are_summarised_after_the_last(
    tracked_runs: list[TrackedRun], sweep: SweepDir
) -> None:
    for number, tracked in enumerate(tracked_runs):
        tracked.log(5, {"val/top1": 50.0 + number})
        end(tracked, "finished")
        (parent,) = parents(tracked)
        assert parent.info.status == "FINISHED"
        assert ("tahoe.best" in parent.data.tags) == (tracked is tracked_runs[-1])


@pytest.mark.slow
def test_children_are_named_by_what_differs(
    tracked_runs: list[TrackedRun], sweep: SweepDir
) -> None:
    sync(tracked_runs[1].run.path)
    assert tracked_runs[1].mlflow_run().info.run_name == "seed=1"


@pytest.mark.slow
def test_a_sweep_that_has_ended_has_a_summary(
    tracked_runs: list[TrackedRun], sweep: SweepDir
) -> None:
    for tracked in tracked_runs:
        sync(tracked.run.path)
    for number, tracked in enumerate(tracked_runs):
        tracked.log(5, {"val/top1": 50.0 + number, "val/loss": 1.0})
        end(tracked, "finished")
    (parent,) = parents(tracked_runs[0])
    assert parent.data.metrics["best/val/top1"] == 52.0
    assert parent.data.tags["tahoe.best"] == "run-2: val/top1 52, seed=2"
    told = parent.data.tags["mlflow.note.content"]
    assert all(part in told for part in ("3 runs", "val/top1 52.00", "seed=2"))
    assert parent.data.metrics["importance/seed"] == pytest.approx(1.0)
    for tracked in tracked_runs:
        sync(tracked.run.path)
    with open_client(tracked_runs[0].uri) as client:
        assert len(client.get_metric_history(parent.info.run_id, "best/val/top1")) == 1
