"""One run, all views of it: each shows what metrics.jsonl has, in the same form."""

import statistics
from datetime import timedelta

import pytest
from rich.console import Console
from tracked_run import TrackedRun

from orchestrator.cli.verbs.evaluate import _cells
from orchestrator.jobs import status
from orchestrator.number_format import format_metric
from orchestrator.run.rundir import read_json_lines
from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.compare import compare
from orchestrator.tracking.reports.compare_table import tables
from orchestrator.tracking.reports.report import report
from orchestrator.tracking.shipping.shipper import sync

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
FIGURES = ("val/top1", "val/top5", "val/loss", "train/loss")


@pytest.fixture
def tracked(create_tracked_run, store):
    made = create_tracked_run(uri=store)
    made.configure(recipe={"global_batch_size": 64})
    made.run.begin_attempt(world_size=2, num_steps=30)
    made.log(0, {"model/gmacs": 0.0004165, "model/num_params": 60850})
    for step, speed in ((10, 819.4), (20, 1311.9), (30, 1162.26)):
        made.log(step, {"train/loss": 1.23456789 / step, "perf/images_per_s": speed})
        figures = {"val/top1": 90 + step / 7, "val/top5": 99.7214, "val/loss": 0.61803 / step}
        made.log(step, figures)
    made.write_outcome("finished", reason="all 30 steps are done")
    made.run.end_attempt(1)
    sync(made.run.path)
    return made


def last_logged(tracked):
    """Return the last value of each figure, read as plainly as can be."""
    found = {}
    for line in read_json_lines(tracked.run.metrics_file):
        found |= line["metrics"]
    return found


def speed_of(tracked):
    logged = [line["metrics"] for line in read_json_lines(tracked.run.metrics_file)]
    return statistics.median(x["perf/images_per_s"] for x in logged if "perf/images_per_s" in x)


def test_every_view_has_the_figures_of_the_file(tracked: TrackedRun) -> None:
    logged = last_logged(tracked)
    record = read_record(tracked.run)
    (one,) = status.run_statuses([tracked.run])
    ((row,),) = [section.rows for section in compare([record])]
    (point,) = report([record], [], "digits").measured
    (from_mlflow,) = records_from_mlflow(tracked.uri)
    in_mlflow = tracked.mlflow_run().data.metrics
    for name in FIGURES:
        assert in_mlflow[name] == record.metrics[name] == one.metrics[name] == logged[name]
        assert from_mlflow.metrics[name] == row.metrics[name].mean == logged[name]
    assert (100 - point.top1, 100 - point.top5) == pytest.approx(
        (logged["val/top1"], logged["val/top5"])
    )
    assert one.images_per_s == row.metrics["images_per_s"].mean == speed_of(tracked)
    assert from_mlflow.images_per_s == pytest.approx(speed_of(tracked), rel=1e-5)


def test_every_table_shows_them_alike(
    tracked: TrackedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    logged, speed = last_logged(tracked), speed_of(tracked)
    record = read_record(tracked.run)
    found = status.run_statuses([tracked.run])
    status.print_statuses(found)
    listed = capsys.readouterr().out
    status.print_details(found[0])
    whole = capsys.readouterr().out
    for table in tables(compare([record])):
        Console(width=1000).print(table)
    compared = capsys.readouterr().out
    judged = {name: logged[f"val/{name}"] for name in ("top1", "top5", "loss")}
    evaluated = _cells(judged, [*judged])
    for name in ("val/top1", "val/loss"):
        text = format_metric(name, logged[name])
        assert text in evaluated
        for view in (listed, whole, compared):
            assert f" {text} " in f"{view} ".replace("\n", " "), (name, text, view)
    for view in (listed, whole, compared):
        assert f" {format_metric('images_per_s', speed)} " in view.replace("\n", " ")
    assert format_metric("training_s", record.training_s) == str(
        timedelta(seconds=round(record.training_s))
    )
