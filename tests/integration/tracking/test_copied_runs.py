"""A copy of a run is another run; a link to it, or its new place, is the same."""

import shutil

import pytest
from tracked_run import CreateTrackedRun

from orchestrator.cli.verbs.select_runs import all_runs, select_runs
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import compare
from orchestrator.tracking.reports.compare_table import tables
from orchestrator.tracking.reports.curves import _images_before
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def shown(tracked):
    """The MLflow runs, by the place that they say is theirs."""
    client = tracked.client()
    places = [one.experiment_id for one in client.search_experiments()]
    return {run.data.tags["tahoe.run_dir"]: run for run in client.search_runs(places)}


@pytest.fixture
def finished(tracked):
    tracked.run.begin_attempt()
    tracked.log(1, {"val/top1": 50.0})
    tracked.write_outcome("finished")
    return tracked


@pytest.mark.parametrize("with_mark", [False, True])
def test_a_copy_has_an_mlflow_run_of_its_own(
    finished, with_mark, capsys: pytest.CaptureFixture[str]
) -> None:
    sync(finished.run.path)
    original = finished.mlflow_state
    copy = finished.run.path.with_name("copy")
    shutil.copytree(finished.run.path, copy)
    if not with_mark:
        (copy / "mlflow.json").unlink()
    for _ in range(2):
        sync(copy)
    sync(finished.run.path)
    found = shown(finished)
    assert set(found) == {str(finished.run.path), str(copy)}
    assert found[str(finished.run.path)].info.run_id == original["run_id"]
    assert all(run.data.metrics == {"val/top1": 50.0} for run in found.values())
    assert len([line for line in capsys.readouterr().err.splitlines() if "is a copy" in line]) == 1


def test_a_run_that_was_moved_keeps_its_mlflow_run(
    finished, capsys: pytest.CaptureFixture[str]
) -> None:
    sync(finished.run.path)
    there = finished.run.path.with_name("elsewhere")
    finished.run.path.rename(there)
    sync(there)
    assert set(shown(finished)) == {str(there)}
    assert capsys.readouterr().err == ""


def test_a_run_and_a_link_to_it_are_one(finished) -> None:
    place = finished.run.path.parent
    link, copy = place / "link", place / "copy"
    link.symlink_to(finished.run.path)
    shutil.copytree(finished.run.path, copy)
    chosen = select_runs([str(finished.run.path), str(link), str(copy)], place)
    assert [one.id for one in chosen] == ["run-1"]
    assert len(all_runs(place)) == 1
    sync(finished.run.path)
    sync(copy)  # from now on it is another
    assert len(select_runs([str(finished.run.path), str(link), str(copy)], place)) == 2


@pytest.mark.parametrize(("decay", "weights"), [(0.9, "averaged"), (None, "raw")])
def test_which_weights_are_judged_is_said(finished, decay, weights) -> None:
    finished.configure(recipe={"ema_decay": decay})
    sync(finished.run.path)
    record = read_record(finished.run)
    assert record.weights == weights
    assert finished.mlflow_run().data.tags["weights"] == weights
    (section,) = compare([record])
    assert section.to_dict()["rows"][0]["runs"][0]["weights"] == weights
    told = [one for one in tables([section]) if isinstance(one, str) and "averaged" in one]
    assert bool(told) == (weights == "averaged")


def test_a_chain_of_runs_goes_on_where_the_one_before_was(
    create_tracked_run: CreateTrackedRun,
) -> None:
    records = []
    for number in range(3):
        tracked = create_tracked_run(f"run-{number}")
        tracked.configure(recipe={"global_batch_size": 10 * (number + 1)})
        identity = tracked.run.read_json(tracked.run.identity_file)
        before = {"uid": f"uid-run-{number - 1}", "step": 100} if number else None
        tracked.run.write_json(tracked.run.identity_file, {**identity, "init_from": before})
        records.append(read_record(tracked.run))
    by_uid = {one.uid: one for one in records}
    assert [_images_before(one, by_uid) for one in records] == [0, 1000, 1000 + 2000]
    assert _images_before(records[2], {one.uid: one for one in records[2:]}) == 0
