"""The lines of a run's log that people follow."""

import logging
from pathlib import Path

import pytest

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.launch.progress_bar import _PROGRESS_LINE
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir
from orchestrator.training.monitoring.console_log import log_evaluation, log_progress

PLAN = Plan(
    num_train=1438,
    num_val=359,
    num_classes=10,
    world_size=2,
    global_batch_size=64,
    num_lanes=32,
    num_micro_batches=2,
    steps_per_epoch=22,
    num_steps=396,
    evaluate_every_steps=22,
    save_every_steps=None,
    save_after_eval=True,
)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_an_evaluation_says_of_which_step_it_is(told: pytest.LogCaptureFixture) -> None:
    log_evaluation(PLAN, 33, {"val/top1": 93.5933, "val/top5": 100.0, "val/loss": 0.225151})
    (line,) = told.messages
    assert line.startswith("step 33/396  epoch 1.50  val ")
    assert line.split()[5:] == ["top1", "93.59", "top5", "100.00", "loss", "0.2252"]


def test_a_terminal_hides_what_its_bar_shows_and_nothing_else(
    told: pytest.LogCaptureFixture,
) -> None:
    figures = {"train/loss": 1.7e29, "train/lr": 0.1, "perf/data_wait_fraction": 0.2}
    log_progress(PLAN, 44, figures | {"perf/images_per_s": 64.0})
    log_evaluation(PLAN, 44, {"val/loss": 0.5})
    progress, evaluation = told.messages
    assert _PROGRESS_LINE.search(f"2026-11-30 07:39:18,804 INFO    {progress}")
    assert not _PROGRESS_LINE.search(f"2026-11-30 07:39:18,804 INFO    {evaluation}")
    assert "1.700e+29" in progress
    assert progress.endswith("ETA 0:05:52")


def test_a_checkpoint_in_its_run_is_told_by_a_short_path(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    own = CheckpointStore(str(run.checkpoints_dir), run)
    assert own.display_path(22) == "checkpoints/step-000000022"
    elsewhere = CheckpointStore("s3://bucket/run/checkpoints", run)
    assert elsewhere.display_path(22) == elsewhere.location(22)
