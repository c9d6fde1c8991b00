"""What mattered in a sweep, against an analysis of variance of known effects."""

import math

import numpy as np
import pytest
from tracked_run import CreateTrackedRun

from orchestrator.jobs.status import run_statuses
from orchestrator.jobs.sweep import _objective_value
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.reports.sweep_summary import SweepPoint, SweepSummary, summarize


def test_importance_is_the_share_of_variance() -> None:
    rng = np.random.default_rng(0)
    points = []
    for lr in (0.1, 0.2, 0.3):
        for seed in range(200):
            objective = 70 + 30 * lr + rng.normal(0, 1)
            points.append(SweepPoint("r", {"lr": str(lr), "seed": str(seed % 2)}, objective))
    found = SweepSummary("val/top1", tuple(points)).importance()
    between = np.var([3.0, 6.0, 9.0])
    assert found["lr"] == pytest.approx(between / (between + 1), abs=0.03)
    assert found["seed"] < 0.01
    assert SweepSummary("val/top1", (points[0], points[0])).importance() == {"lr": 0.0, "seed": 0.0}


def test_the_best_point_is_first_and_points_without_objective_are_left_out(
    create_tracked_run: CreateTrackedRun,
) -> None:
    def record(name, **figures):
        tracked = create_tracked_run(name)
        tracked.log(3, figures)
        tracked.run.begin_attempt()
        tracked.write_outcome("finished")
        return read_record(tracked.run)

    records = [record("a", loss=1.0), record("b", **{"val/loss": 2.0}),
               record("c", **{"val/loss": 1.0}), record("d", **{"val/loss": math.nan})]  # fmt: skip
    values = [{"lr": str(10.0**-i), "model": "x"} for i in range(4)]
    (summary,) = summarize(records, values)
    assert [point.run for point in summary.points] == ["c", "b"]
    assert summary.metric == "val/loss"
    assert summarize(records[:2], values[:2]) == []


def test_objectives_equal_the_sweepers_and_compare_under_one_protocol(
    create_tracked_run: CreateTrackedRun,
) -> None:
    def record(name, protocol, *top1, outcome="finished"):
        tracked = create_tracked_run(name)
        tracked.configure(data={"eval_protocol": protocol})
        for step, value in enumerate(top1):
            tracked.log(step, {"val/top1": value})
        tracked.run.begin_attempt()
        tracked.write_outcome(outcome)
        assert (
            _objective_value(tracked.run, run_statuses([tracked.run])[0]) == max(top1)
            or outcome != "finished"
        )
        return read_record(tracked.run)

    records = [
        record("early", "center-28-of-32", 80.0, 60.0),
        record("late", "center-28-of-32", 50.0, 70.0),
        record("diverged", "center-28-of-32", 99.0, outcome="failed_permanently"),
        record("easy", "ten-crop-28-of-32", 90.0),
        record("easier", "ten-crop-28-of-32", 95.0),
        record("alone", "warp-28-of-32", 97.0),
    ]
    first, second = summarize(records, [{"seed": str(n)} for n in range(6)])
    assert [(point.run, point.objective) for point in first.points] == [
        ("early", 80.0),
        ("late", 70.0),
    ]
    assert [point.run for point in second.points] == ["easier", "easy"]
    assert (first.place, second.place) == ("digits/center-28-of-32", "digits/ten-crop-28-of-32")
