"""Results come from run directories alone."""

import io
import math

import pytest
from rich.console import Console

from orchestrator.rundir import RunDir, RunError, append_json_line
from orchestrator.tracking.compare import Result, results, table


def shown(*compared, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(table(compared))
    return console.file.getvalue()


def row(result):
    return shown(result).strip().splitlines()[-1].split()


def test_what_a_run_achieved(make_scene):
    scene = make_scene()
    start_s = scene.clock_ms / 1000
    attempts = scene.run.attempts_file
    append_json_line(attempts, {"attempt": 1, "started_s": start_s - 60})  # killed, no end
    scene.log(0, {"model/num_params": 60_965_224, "model/gmacs": 0.7})
    for step, speed in ((10, 100.0), (20, 900.0)):
        scene.log(step, {"train/loss": 1.0, "perf/images_per_s": speed})
    scene.log(20, {"val/top1": 50.0, "val/top5": 80.0})
    killed_s = scene.clock_ms / 1000
    append_json_line(attempts, {"attempt": 2, "started_s": start_s + 1000})
    append_json_line(attempts, {"attempt": 2, "ended_s": start_s + 1100})
    scene.log(20, {"val/top1": 51.0, "perf/images_per_s": 1.0}, attempt=2)  # again: not counted
    scene.log(30, {"val/top1": 57.125, "perf/images_per_s": 300.0}, attempt=2)
    scene.append('{"step": 40, "time')
    scene.judge("finished", attempt=2)
    found = results(scene.run)
    assert found == Result(
        run_id="run-1",
        model="alexnet",
        val_top1_percent=57.125,
        training_s=pytest.approx(60 + killed_s - start_s + 100),
        images_per_s=300.0,
        num_params=60_965_224,
        status="finished",
    )
    assert row(found) == [
        "run-1", "alexnet", "57.12", "0:02:40", "300", "60.97", "finished",
    ]  # fmt: skip


def test_the_table_names_its_units_and_cuts_no_number():
    best = Result("alexnet-imagenet-0a1b2c3d", "alexnet", 57.125, 3.6e5, 12345.6,
                  60_965_224, "never_restart")  # fmt: skip
    wide, narrow = shown(best), shown(best, width=80)
    for unit in ("(%)", "(h:mm:ss)", "(img/s)", "(M)"):
        assert unit in wide
    for number in ("57.12", "100:00:00", "12,346", "60.97", "restart"):
        assert number in wide
        assert number in narrow


def test_a_run_that_has_not_begun(make_scene):
    found = results(make_scene().run)
    assert found.status == "scheduled"
    assert row(found) == ["run-1", "alexnet", "-", "-", "-", "-", "scheduled"]


def test_alive_or_crashed(make_scene):
    scene = make_scene()
    scene.run.begin_attempt()
    with scene.run.lock():
        assert results(scene.run).status == "running"
    assert results(scene.run).status == "crashed"
    assert results(scene.run).training_s == 0.0


def test_a_diverged_run(make_scene):
    scene = make_scene()
    scene.log(
        1, {"val/top1": math.nan, "perf/images_per_s": math.nan, "model/num_params": math.nan}
    )
    assert row(results(scene.run))[2:] == ["nan", "-", "-", "-", "scheduled"]


def test_no_run_there(tmp_path):
    with pytest.raises(RunError, match="no run at"):
        results(RunDir(tmp_path))
