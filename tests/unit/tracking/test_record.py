"""A record is what a run directory says, and nothing else."""

import math
from pathlib import Path

import pytest
from tracked_run import CreateTrackedRun

from orchestrator.run.rundir import RunDir, RunError, append_json_line
from orchestrator.tracking.records.record import read_record


def test_what_a_run_achieved(create_tracked_run: CreateTrackedRun) -> None:
    tracked = create_tracked_run()
    tracked.configure(recipe={"global_batch_size": 128})
    start_s = tracked.clock_ms / 1000
    attempts = tracked.run.attempts_file
    append_json_line(attempts, {"attempt": 1, "started_s": start_s - 60, "world_size": 2})  # killed
    tracked.log(0, {"model/num_params": 60_965_224, "model/gmacs": 0.7})
    for step, speed in ((10, 100.0), (20, 900.0)):
        spent = {"perf/total_pflop": 0.5 * step}
        tracked.log(step, {"train/loss": 1.0, "perf/images_per_s": speed, **spent})
    tracked.log(20, {"val/top1": 50.0, "val/top5": 80.0})
    killed_s = tracked.clock_ms / 1000
    append_json_line(attempts, {"attempt": 2, "started_s": start_s + 1000, "world_size": 4})
    append_json_line(attempts, {"attempt": 2, "ended_s": start_s + 1100})
    tracked.log(20, {"val/top1": 51.0, "perf/images_per_s": 1.0}, attempt=2)  # again: not counted
    tracked.log(30, {"val/top1": 57.125, "perf/images_per_s": 300.0}, attempt=2)
    tracked.append('{"step": 40, "time')
    tracked.write_outcome("finished", attempt=2)
    found = read_record(tracked.run)
    assert found.metrics == {
        "model/num_params": 60_965_224,
        "model/gmacs": 0.7,
        "train/loss": 1.0,
        "val/top1": 57.125,
        "val/top5": 80.0,
        "perf/images_per_s": 300.0,
        "perf/total_pflop": 10.0,
    }
    first_s = 60 + killed_s - start_s
    assert found.training_s == pytest.approx(first_s + 100)
    assert found.device_s == pytest.approx(2 * first_s + 4 * 100)
    assert found.images_per_s == 300.0  # the median
    assert (found.step, found.num_images) == (30, 30 * 128)
    assert found.petaflop == 10.0  # as far as it was logged
    assert (found.status, found.num_attempts, found.uid) == ("finished", 2, "uid-run-1")
    assert found.config["recipe.schedule"] == [30, 60]
    assert "model.published" not in found.config


def test_what_is_sent_after_the_end_is_no_training(create_tracked_run: CreateTrackedRun) -> None:
    run = create_tracked_run().run
    for number in (1, 2):
        attempt = run.begin_attempt(world_size=2)
        outcome = {"outcome": "stopped", "attempt": attempt, "reason": f"asked {number}"}
        outcome["time_s"] = run.attempt_start_s(attempt) + 100 * number
        run.write_json(run.outcome_file, outcome)
        if number == 1:  # the other's launcher still waits for what is sent
            run.end_attempt(attempt, ended_s=outcome["time_s"] + 50, **run.attempt_outcome(attempt))
    found = read_record(run)
    assert found.training_s == pytest.approx(300)
    assert found.device_s == pytest.approx(600)
    assert found.attempt_outcomes == ["asked 1", "asked 2"]


def test_what_is_not_known_is_none(create_tracked_run: CreateTrackedRun) -> None:
    found = read_record(create_tracked_run().run)
    assert found.status == "scheduled"
    assert found.metrics == {}
    unknown = (found.step, found.num_images, found.training_s, found.images_per_s, found.petaflop)
    assert unknown == (None,) * 5
    assert found.model_title == "alexnet"


def test_no_secret_is_in_a_record(create_tracked_run: CreateTrackedRun) -> None:
    tracked = create_tracked_run()
    tracked.configure(data={"url": "https://me:hunter2@host/set"})
    assert "hunter2" not in str(read_record(tracked.run))


def test_a_diverged_run(create_tracked_run: CreateTrackedRun) -> None:
    tracked = create_tracked_run()
    tracked.log(1, {"val/top1": math.nan, "perf/images_per_s": math.nan})
    found = read_record(tracked.run)
    assert math.isnan(found.metrics["val/top1"])
    assert found.images_per_s is None


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        read_record(RunDir(tmp_path))


def test_why_is_a_line(create_tracked_run: CreateTrackedRun) -> None:
    tracked = create_tracked_run()
    attempt = tracked.run.begin_attempt()
    tracked.run.end_attempt(attempt, why="a tensor\n" * 1000)
    tracked.write_outcome(
        "failed_permanently", attempt, "what failed\n" + "a tensor\n" * 1000 + "and why"
    )
    found = read_record(tracked.run)
    for text in (found.reason, *found.attempt_outcomes):
        assert len(text) < 500
        assert "\n" not in text
    assert found.reason.startswith("what failed")
    assert found.reason.endswith("and why")
