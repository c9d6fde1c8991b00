"""What a finished run is told to have come to."""

import math
import time
from pathlib import Path

import pytest

from orchestrator.cli.shared.finished import results_summary
from orchestrator.run.rundir import RunDir, append_json_line


def log(run: RunDir, step: int, **figures: float) -> None:
    named = {name.replace("_", "/", 1): value for name, value in figures.items()}
    line = {"step": step, "time_ms": time.time_ns() // 10**6, "attempt": 1, "metrics": named}
    append_json_line(run.metrics_file, line)


def test_it_tells_the_figure_the_best_one_the_time_and_what_comes_next(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    run.begin_attempt(world_size=1)
    for step, top1 in ((7, 98.891), (14, 98.607)):
        log(run, step, val_top1=top1, val_loss=1 / step)
    text = results_summary(run)
    head = text.splitlines()[0]
    assert head.startswith("finished: my run: ")
    assert "98.61" in head
    assert "98.89 at step 7" in head
    assert "0:00:0" in head
    assert "tahoe compare --runs-dir ." in text
    assert "tahoe ui" not in text  # it was not tracked
    run.write_json(
        run.mlflow_file, {"run_id": "a", "experiment_id": "1", "tracking_uri": "sqlite:///x.db"}
    )
    assert "tahoe ui 'my run'" in results_summary(run)
    uri = "https://me:hunter2@mlflow.example.org/"
    run.write_json(run.mlflow_file, {"run_id": "a", "experiment_id": "1", "tracking_uri": uri})
    page = "https://mlflow.example.org/#/experiments/1/runs/a?workflowType=machine_learning"
    assert page in results_summary(run)


def test_a_run_that_ends_in_nan_does_not_boast_of_its_last_number(run: RunDir) -> None:
    log(run, 7, val_top1=math.nan)
    assert "nan" in results_summary(run)
    log(run, 8, val_top1=98.607)
    log(run, 14, val_top1=math.nan)
    head = results_summary(run).splitlines()[0]
    assert "top-1 nan" in head
    assert "98.61 at step 8" in head


def test_a_run_without_classes_has_its_loss(run: RunDir) -> None:
    log(run, 7, val_loss=0.25)
    log(run, 14, val_loss=0.125)
    head = results_summary(run).splitlines()[0]
    assert str(Path(run.path)) in head
    assert "0.1250" in head
    assert "best" not in head


def test_a_run_that_was_never_judged(run: RunDir) -> None:
    assert results_summary(run).startswith("finished: ")
