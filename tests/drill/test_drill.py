"""`tahoe drill` passes on Tahoe as it is, and fails when anything is lost, doubled or changed."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from running import Tahoe
from s3 import S3

from data_sharding.io import filesystem
from orchestrator.config.parse import parse
from orchestrator.drill.compare import Report, compare
from orchestrator.drill.faults import FATAL, KINDS
from orchestrator.run.rundir import RunDir

pytestmark = pytest.mark.slow

NUM_STEPS = 42  # of a drill with two attempts besides the last


# `make drill` asks for 200.
NUM_FAULTS = int(os.environ.get("TAHOE_DRILL_FAULTS", "20"))


@pytest.mark.timeout(900)
def test_every_kind_of_fault(
    tmp_path: Path, digits: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("running.DEADLINE_S", 850)
    s3_server.fail()
    s3_server.put(s3_server.url("drilled"), digits)
    data, network = f"data.url={s3_server.url('drilled')}", "recipe.ema_decay=0.9"
    options = ("--faults", str(NUM_FAULTS), "--directory", "drill", "--json")
    done = Tahoe(tmp_path)("drill", *options, data, network, check=False)
    print(done.stderr, done.stdout)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["is_well"]
    assert report["weights_equal"]
    faults = report["faults"]
    assert set(faults) == set(KINDS)
    assert sum(faults.values()) >= 0.95 * NUM_FAULTS  # the last attempt may end before its last
    assert sum(faults[kind] for kind in FATAL) >= NUM_FAULTS // 5
    assert report["most_lost_steps"] < 30


@pytest.mark.long
@pytest.mark.timeout(300)
def test_checkpoints_in_a_store(
    tmp_path: Path, digits: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("running.DEADLINE_S", 280)
    s3_server.fail()
    kinds = ("kill in a save", "truncate a checkpoint", "flip a bit of a checkpoint")
    options = [option for kind in kinds for option in ("--kind", kind)]
    there = f"checkpoint.url={s3_server.url('checkpoints')}"
    done = Tahoe(tmp_path)(
        *("drill", *options, "--faults", "3", "--directory", "drill", "--json"),
        *(f"data.url='{digits}'", there, "recipe.ema_decay=0.9"),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert set(report["faults"]) == set(kinds)
    assert report["lost_steps"] > 0
    names = filesystem.list_names(s3_server.url("checkpoints", "drills", "drill", "hurt"))
    assert names[-1] == f"step-{report['num_steps']:09d}"


def last_samples(hurt: RunDir) -> Path:
    """Return what a rank was given in the last attempt, of which nothing was done again."""
    return hurt.samples_file(hurt.num_attempts, 0)


def lose_samples(hurt: RunDir) -> None:
    lines = last_samples(hurt).read_text().splitlines(keepends=True)
    last_samples(hurt).write_text("".join(lines[:-1]))


def train_on_others(hurt: RunDir) -> None:
    *lines, before, last = last_samples(hurt).read_text().splitlines()
    changed = json.loads(last)
    changed["ids"][0] = json.loads(before)["ids"][0]
    last_samples(hurt).write_text("\n".join([*lines, before, json.dumps(changed), ""]))


def log_another_loss(hurt: RunDir) -> None:
    lines = hurt.metrics_file.read_text().splitlines()
    record = json.loads(lines[1])  # the first of its step, which counts
    record["metrics"]["train/loss"] += 1e-9
    hurt.metrics_file.write_text("\n".join([lines[0], json.dumps(record), *lines[2:], ""]))


def lose_a_point(hurt: RunDir) -> None:
    _in_store(hurt, "DELETE FROM metrics WHERE key = 'train/loss' AND step = 5")


def double_a_point(hurt: RunDir) -> None:
    columns = "key, value, timestamp + 1, run_uuid, step, is_nan"
    source = "FROM metrics WHERE key = 'train/loss' AND step = 5 AND run_uuid = ?"
    columns_in = "(key, value, timestamp, run_uuid, step, is_nan)"
    run_id = (hurt.read_json(hurt.mlflow_file) or {})["run_id"]
    _in_store(hurt, f"INSERT INTO metrics {columns_in} SELECT {columns} {source}", run_id)


def _in_store(hurt: RunDir, statement: str, *values: str) -> None:
    with sqlite3.connect(hurt.path.parent / "mlflow.db") as store:
        store.execute(statement, values)
    store.close()


def end_with_other_weights(hurt: RunDir) -> None:
    manifest = hurt.checkpoints_dir / f"step-{NUM_STEPS:09d}" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"]["model.safetensors"]["sha256"] = "0" * 64
    del values["sha256"]
    manifest.write_text(json.dumps(values))


HARMS: list[tuple[Callable[[RunDir], None], set[str]]] = [
    (lambda hurt: None, set()),
    (lose_samples, {"samples_never"}),
    (train_on_others, {"samples_never", "samples_twice"}),
    (log_another_loss, {"figures_differ", "points_doubled"}),
    (lose_a_point, {"points_lost"}),
    (double_a_point, {"points_doubled"}),
    (end_with_other_weights, {"weights_equal"}),
]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.timeout(300)
def test_what_goes_wrong_is_noticed(tahoe: Tahoe, digits: Path, tmp_path: Path) -> None:
    kinds = ("--kind", "kill all ranks", "--kind", "ask to stop", "--faults", "2")
    done = tahoe("drill", *kinds, "--directory", "drill", f"data.url='{digits}'")
    assert "passed; both runs are in" in done.stdout
    assert "final weights                    equal" in done.stdout
    done_there = (tahoe.cwd / "drill").rename(tmp_path / "done")  # or all would be copies of it
    for number, (harm, noticed) in enumerate(HARMS):
        place = shutil.copytree(done_there, tmp_path / f"drill-{number}")
        alone, hurt = RunDir(place / "undisturbed"), RunDir(place / "hurt")
        values = hurt.read_config()
        values["tracking"]["uri"] = f"sqlite:///{place}/mlflow.db"
        hurt.write_config(values)
        harm(hurt)
        report = Report(2)
        configs = parse(alone.read_config()), parse(hurt.read_config())
        compare(report, (alone, hurt), configs, NUM_STEPS)
        counts = (
            *("samples_never", "samples_twice", "figures_differ"),
            *("points_lost", "points_doubled"),
        )
        found = {name for name in counts if getattr(report, name)}
        assert found | (set() if report.weights_equal else {"weights_equal"}) == noticed, harm
        assert report.passed == (noticed == set())

    shutil.copytree(done_there, tahoe.cwd / "drill", dirs_exist_ok=True)
    refused = tahoe("drill", "drill/hurt", "seed=1", check=False)
    assert refused.returncode == 93
    assert "takes its config as it is" in refused.stderr
    there = tahoe("drill", "drill/hurt", "--directory", "drill", check=False)
    assert there.returncode == 1
    assert "cannot make a directory for the drill" in there.stderr
