"""What is not finite is never a figure: not in MLflow, not in JSON, not in a picture."""

import json
import math
from pathlib import Path

import pytest
from mlflow.entities import Metric
from tracked_run import CreateTrackedRun

from orchestrator.cli.main import main
from orchestrator.drill.compare import count_missing_and_duplicate_points
from orchestrator.tracking.mlflow_store.mlflow_records import metric_history, records_from_mlflow
from orchestrator.tracking.records.catalog import _best_results
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import MeanStd, compare
from orchestrator.tracking.reports.compare_table import _cell
from orchestrator.tracking.reports.curves import draw_curves
from orchestrator.tracking.reports.report import report
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture
def diverged(tracked):
    """A run whose loss has left the numbers."""
    data = {"name": "digits", "fingerprint": "f" * 36}
    identity = tracked.run.read_json(tracked.run.identity_file)
    tracked.run.write_json(tracked.run.identity_file, {**identity, "data": data})
    tracked.configure(recipe={"global_batch_size": 8})
    tracked.run.begin_attempt()
    tracked.log(1, {"val/loss": 2.0, "val/top1": 10.0, "perf/images_per_s": 5.0})
    last = {"val/loss": math.inf, "val/top1": math.nan, "train/loss": -math.inf}
    tracked.log(2, {**last, "perf/images_per_s": math.nan})
    return tracked


def printed(capsys, *arguments):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def test_json_is_strict(diverged, capsys: pytest.CaptureFixture[str]) -> None:
    run, place = str(diverged.run.path), str(diverged.run.path.parent)
    with diverged.run.lock():  # of a run that goes on, the time left is reckoned as well
        (status,) = printed(capsys, "status", run, "--json")
        (listed,) = printed(capsys, "list", "--runs-dir", place, "--json")
    assert status == listed
    assert status["metrics"] == {
        **dict.fromkeys(("val/loss", "val/top1", "train/loss", "perf/images_per_s")),
    }
    assert status["eta_s"] is None
    (section,) = printed(capsys, "compare", "--runs-dir", place, "--json")
    assert section["rows"][0]["metrics"]["val/loss"] == {"mean": None, "std": None, "num": 1}


def test_infinity_is_no_figure_in_mlflow(diverged, store: str) -> None:
    sync(diverged.run.path)
    held = {
        key: value for (key, step), ((value, _),) in diverged.mlflow_points().items() if step == 2
    }
    assert len(held) == 4
    assert all(math.isnan(value) for value in held.values()), held
    (record,) = records_from_mlflow(store)
    assert math.isnan(record.metrics["val/loss"])
    assert metric_history(store)(record, "val/loss") == {1: 2.0}
    assert count_missing_and_duplicate_points(diverged.run, store) == (0, 0)


def test_what_older_stores_hold_for_infinity_is_no_figure_either(diverged, store: str) -> None:
    sync(diverged.run.path)
    for step, value in ((3, math.inf), (4, -math.inf)):  # as it was sent before
        metrics = [Metric("val/loss", value, diverged.clock_ms, step)]
        diverged.client().log_batch(diverged.mlflow_state["run_id"], metrics=metrics)
    (record,) = records_from_mlflow(store)
    assert math.isnan(record.metrics["val/loss"])
    assert metric_history(store)(record, "val/loss") == {1: 2.0}


def test_a_figure_that_is_never_finite_is_not_drawn(
    create_tracked_run: CreateTrackedRun, tmp_path: Path
) -> None:
    tracked_runs = [create_tracked_run(name) for name in "ab"]
    for number, tracked in enumerate(tracked_runs):
        for step in range(1, 9):
            is_known = step > 4 if number else step <= 4  # finite where the other is not
            tracked.log(step, {"val/top1": math.nan, "val/loss": 1.0 if is_known else math.inf})
        tracked.write_outcome("finished", tracked.run.begin_attempt())
    for some in (tracked_runs[:1], tracked_runs):
        file = tmp_path / "curves.png"
        draw_curves(compare([read_record(tracked.run) for tracked in some]), file)
        assert file.stat().st_size > 5_000
        file.unlink()


ALEXNET = {"title": "AlexNet", "year": 2012, "dataset": "imagenet"}


def test_a_run_that_diverged_is_no_best(create_tracked_run: CreateTrackedRun) -> None:
    records = []
    for number, top1 in enumerate([math.nan, 60.0, math.inf, 70.0, math.nan]):
        tracked = create_tracked_run(f"run-{number}")
        tracked.configure(model={"published": ALEXNET}, recipe={"lr": 0.1 * number})
        tracked.run.begin_attempt()
        tracked.log(1, {"val/top1": top1})
        tracked.write_outcome("finished")
        records.append(read_record(tracked.run))
    best = _best_results(records)["AlexNet"]
    assert (best.top1_err, best.run) == (30.0, records[3].path)
    found = report(records, [], "digits")
    assert [point.top1 for point in found.measured] == [30.0, 40.0]
    (section,) = found.sections
    assert [row.name for row in section.rows[:2]] == ["run-3", "run-1"]  # the rest is below


@pytest.mark.parametrize("values", [[1e200, 3e200], [1.7e308, 1.7e308], [math.inf, -math.inf]])
def test_the_mean_of_huge_losses(values) -> None:
    spread = MeanStd.of(values)
    if all(map(math.isfinite, values)):
        assert spread.mean == pytest.approx(sum(value / 2 for value in values))
        assert spread.std == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    else:
        assert math.isnan(spread.mean)


@pytest.mark.parametrize("loss", [1.7e29, -1.7e29, 0.00123456, 2.30258, 123456789.0])
def test_a_loss_has_few_digits_however_large(loss) -> None:
    shown = _cell("val/loss", MeanStd(loss, loss / 3, 2), 1)
    assert len(shown) < 25
    assert float(shown.partition(" ")[0]) == pytest.approx(loss, rel=1e-3)
