"""The MLflow run of a sweep: one for all its runs, and as its runs stand."""

import shutil

import pytest

from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_store.client import open_client
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def scenes(make_scene):
    return [make_scene(f"run-{i}") for i in range(3)]


@pytest.fixture
def sweep(scenes, tmp_path):
    runs = [scene.run for scene in scenes]
    sweep = SweepDir.of(tmp_path, runs)
    sweep.add((run, ["model=a", f"seed={i}"]) for i, run in enumerate(runs))
    return sweep


def parents(scene):
    with open_client(scene.uri) as client:
        found = client.search_runs([scene.shown().info.experiment_id])
    return [run for run in found if "tahoe.sweep" in run.data.tags]


def parent_status(scene):
    (parent,) = parents(scene)
    return parent.info.status


def end(scene, outcome):
    scene.run.begin_attempt()
    scene.judge(outcome)
    sync(scene.run.path)


def test_runs_of_a_sweep_have_one_parent(scenes, sweep):
    for scene in (*scenes, *scenes):
        sync(scene.run.path)
    (parent,) = parents(scenes[0])
    assert {scene.shown().data.tags["mlflow.parentRunId"] for scene in scenes} == {
        parent.info.run_id
    }
    assert parent.info.run_name == sweep.id
    assert parent.data.tags["tahoe.swept_keys"] == "seed=0,1,2"
    assert parent.data.tags["tahoe.sweep_dir"] == str(sweep.path)


@pytest.mark.slow
def test_a_sweep_at_the_path_of_one_that_was_deleted_has_a_parent_of_its_own(scenes, sweep):
    sync(scenes[0].run.path)
    (before,) = parents(scenes[0])
    shutil.rmtree(sweep.path)
    sweep.add([(scenes[1].run, ["seed=1"])])
    sync(scenes[1].run.path)
    assert scenes[0].shown().data.tags["mlflow.parentRunId"] == before.info.run_id
    assert scenes[1].shown().data.tags["mlflow.parentRunId"] != before.info.run_id
    assert len(parents(scenes[0])) == 2


def test_a_run_alone_has_none(scenes):
    sync(scenes[0].run.path)
    assert parents(scenes[0]) == []
    assert "mlflow.parentRunId" not in scenes[0].shown().data.tags


@pytest.mark.parametrize(
    ("last", "status"),
    [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed_permanently", "FAILED")],
)
def test_a_sweep_ends_with_its_last_run(scenes, sweep, last, status):
    for scene in scenes:
        sync(scene.run.path)
    assert parent_status(scenes[0]) == "RUNNING"
    for scene in scenes[:2]:
        end(scene, "finished")
        assert parent_status(scene) == "RUNNING"
    end(scenes[2], last)
    assert parent_status(scenes[2]) == status
    with scenes[0].run.lock():  # extended
        sync(scenes[0].run.path)
        assert parent_status(scenes[0]) == "RUNNING"


def test_a_point_that_will_never_begin_does_not_keep_a_sweep_running(scenes, sweep):
    for scene in scenes:
        sync(scene.run.path)
    for scene in scenes[:2]:
        end(scene, "finished")
    assert parent_status(scenes[0]) == "RUNNING"
    sync(scenes[2].run.path, never="ended before an attempt began (job 7: CANCELLED)")
    assert parent_status(scenes[0]) == "KILLED"
    assert scenes[2].shown().info.status == "KILLED"
    assert "job 7: CANCELLED" in scenes[2].shown().data.tags["tahoe.outcome"]
    with scenes[2].run.lock():  # submitted again
        scenes[2].run.begin_attempt()
        sync(scenes[2].run.path, never="not true any more")
    assert parent_status(scenes[0]) == "RUNNING"


@pytest.mark.slow
def test_children_are_named_by_what_differs(scenes, sweep):
    sync(scenes[1].run.path)
    assert scenes[1].shown().info.run_name == "seed=1"


@pytest.mark.slow
def test_a_sweep_that_has_ended_has_a_summary(scenes, sweep):
    for scene in scenes:
        sync(scene.run.path)
    for number, scene in enumerate(scenes):
        scene.log(5, {"val/top1": 50.0 + number, "val/loss": 1.0})
        end(scene, "finished")
    (parent,) = parents(scenes[0])
    assert parent.data.metrics["best/val/top1"] == 52.0
    assert parent.data.tags["tahoe.best"] == "run-2: val/top1 52, seed=2"
    told = parent.data.tags["mlflow.note.content"]
    assert all(part in told for part in ("3 runs", "val/top1 52.00", "seed=2"))
    assert parent.data.metrics["importance/seed"] == pytest.approx(1.0)
    for scene in scenes:
        sync(scene.run.path)
    with open_client(scenes[0].uri) as client:
        assert len(client.get_metric_history(parent.info.run_id, "best/val/top1")) == 1
