"""What mattered in a sweep, against an analysis of variance of known effects."""

import math

import numpy as np
import pytest

from orchestrator.tracking.record import read_record
from orchestrator.tracking.sweep_summary import Point, Summary, draw_summary, summarise


def test_importance_is_the_share_of_variance():
    rng = np.random.default_rng(0)
    points = []
    for lr in (0.1, 0.2, 0.3):
        for seed in range(200):
            worth = 70 + 30 * lr + rng.normal(0, 1)
            points.append(Point("r", {"lr": str(lr), "seed": str(seed % 2)}, worth))
    found = Summary("val/top1", tuple(points)).importance()
    between = np.var([3.0, 6.0, 9.0])
    assert found["lr"] == pytest.approx(between / (between + 1), abs=0.03)
    assert found["seed"] < 0.01
    assert Summary("val/top1", (points[0], points[0])).importance() == {"lr": 0.0, "seed": 0.0}


def test_the_best_is_first_and_what_came_to_nothing_is_left_out(make_scene, tmp_path):
    def record(name, **figures):
        scene = make_scene(name)
        scene.log(3, figures)
        return read_record(scene.run)

    records = [record("a", loss=1.0), record("b", **{"val/loss": 2.0}),
               record("c", **{"val/loss": 1.0}), record("d", **{"val/loss": math.nan})]  # fmt: skip
    values = [{"lr": str(10.0**-i), "model": "x"} for i in range(4)]
    summary = summarise(records, values)
    assert summary is not None
    assert [point.run for point in summary.points] == ["c", "b"]
    assert summary.figure == "val/loss"
    assert summarise(records[:2], values[:2]) is None
    for file in draw_summary(summary, tmp_path):
        assert file.stat().st_size > 5000
