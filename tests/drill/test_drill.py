"""`tahoe drill` passes on Tahoe as it is, and fails when anything is lost, doubled or changed."""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_runner import Tahoe
from s3_server import S3

from data_sharding.io import filesystem
from orchestrator.checkpoint.store import CheckpointManifest
from orchestrator.config.parse import parse
from orchestrator.drill.compare import Report, compare
from orchestrator.drill.faults import FATAL, KINDS
from orchestrator.run.rundir import RunDir

pytestmark = pytest.mark.slow

NUM_STEPS = 42  # of a drill with two attempts besides the last


# `make drill` asks for 200.
NUM_FAULTS = int(os.environ.get("TAHOE_DRILL_FAULTS", "20"))
STRATEGY = os.environ.get("TAHOE_DRILL_STRATEGY", "ddp")


@pytest.mark.timeout(900)
def test_every_kind_of_fault(
    tmp_path: Path, digits: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli_runner.DEADLINE_S", 850)
    s3_server.fail()
    s3_server.put(s3_server.url("drilled"), digits)
    data, network = f"data.url={s3_server.url('drilled')}", "recipe.ema_decay=0.9"
    options = ("--faults", str(NUM_FAULTS), "--directory", "drill", "--json")
    done = Tahoe(tmp_path)("drill", *options, data, network, f"strategy={STRATEGY}", check=False)
    print(done.stderr, done.stdout)
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["passed"]
    assert report["weights_equal"]
    faults = report["faults"]
    assert set(faults) == set(KINDS)
    assert sum(faults.values()) >= 0.95 * NUM_FAULTS  # the last attempt may end before its last
    assert sum(faults[kind] for kind in FATAL) >= NUM_FAULTS // 5
    assert report["most_lost_steps"] < 30


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp_zero1", "fsdp2"])
def test_faults_under_other_strategies(
    tmp_path: Path, digits: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli_runner.DEADLINE_S", 280)
    kinds = ("kill one rank", "ask to stop", "flip a bit of a checkpoint")
    options = [option for kind in kinds for option in ("--kind", kind)]
    done = Tahoe(tmp_path)(
        *("drill", *options, "--faults", "3", "--directory", "drill", "--json"),
        *(f"data.url='{digits}'", f"strategy={strategy}", "recipe.ema_decay=0.9"),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert set(report["faults"]) == set(kinds)
    assert report["weights_equal"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_checkpoints_in_a_store(
    tmp_path: Path, digits: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli_runner.DEADLINE_S", 280)
    s3_server.fail()
    kinds = ("kill in a save", "truncate a checkpoint", "flip a bit of a checkpoint")
    options = [option for kind in kinds for option in ("--kind", kind)]
    store = f"checkpoint.url={s3_server.url('checkpoints')}"
    done = Tahoe(tmp_path)(
        *("drill", *options, "--faults", "3", "--directory", "drill", "--json"),
        *(f"data.url='{digits}'", store, "recipe.ema_decay=0.9"),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert set(report["faults"]) == set(kinds)
    assert report["lost_steps"] > 0
    names = filesystem.list_names(s3_server.url("checkpoints", "drills", "drill", "faulty"))
    assert names[-1] == f"step-{report['num_steps']:09d}"


def last_samples(run: RunDir) -> Path:
    """Return the samples file of rank 0 in the last attempt, whose steps were not repeated."""
    return run.samples_file(run.num_attempts, 0)


def lose_samples(run: RunDir) -> None:
    lines = last_samples(run).read_text().splitlines(keepends=True)
    last_samples(run).write_text("".join(lines[:-1]))


def train_on_others(run: RunDir) -> None:
    *lines, before, last = last_samples(run).read_text().splitlines()
    changed = json.loads(last)
    changed["ids"][0] = json.loads(before)["ids"][0]
    last_samples(run).write_text("\n".join([*lines, before, json.dumps(changed), ""]))


def log_another_loss(run: RunDir) -> None:
    lines = run.metrics_file.read_text().splitlines()
    record = json.loads(lines[1])  # the first of its step, which counts
    record["metrics"]["train/loss"] += 1e-9
    run.metrics_file.write_text("\n".join([lines[0], json.dumps(record), *lines[2:], ""]))


def lose_a_point(run: RunDir) -> None:
    _in_store(run, "DELETE FROM metrics WHERE key = 'train/loss' AND step = 5")


def double_a_point(run: RunDir) -> None:
    columns = "key, value, timestamp + 1, run_uuid, step, is_nan"
    source = "FROM metrics WHERE key = 'train/loss' AND step = 5 AND run_uuid = ?"
    columns_in = "(key, value, timestamp, run_uuid, step, is_nan)"
    run_id = (run.read_json(run.mlflow_file) or {})["run_id"]
    _in_store(run, f"INSERT INTO metrics {columns_in} SELECT {columns} {source}", run_id)


def _in_store(run: RunDir, statement: str, *values: str) -> None:
    with sqlite3.connect(run.path.parent / "mlflow.db") as store:
        store.execute(statement, values)
    store.close()


def end_with_other_weights(run: RunDir) -> None:
    file = run.checkpoints_dir / f"step-{NUM_STEPS:09d}" / "manifest.json"
    manifest = CheckpointManifest.parse(file.read_bytes(), str(file))
    num_bytes, _ = manifest.files["model.safetensors"]
    files = {**manifest.files, "model.safetensors": (num_bytes, "0" * 64)}
    file.write_bytes(replace(manifest, files=files).to_bytes())


HARMS: list[tuple[Callable[[RunDir], None], set[str]]] = [
    (lambda run: None, set()),
    (lose_samples, {"samples_missing"}),
    (train_on_others, {"samples_missing", "samples_duplicated"}),
    (log_another_loss, {"metrics_changed", "points_duplicated"}),
    (lose_a_point, {"points_missing"}),
    (double_a_point, {"points_duplicated"}),
    (end_with_other_weights, {"weights_equal"}),
]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.timeout(300)
def test_a_drill_fails_when_samples_metrics_points_or_weights_differ(
    tahoe: Tahoe, digits: Path, tmp_path: Path
) -> None:
    kinds = ("--kind", "kill all ranks", "--kind", "ask to stop", "--faults", "2")
    done = tahoe("drill", *kinds, "--directory", "drill", f"data.url='{digits}'")
    assert "passed; both runs are in" in done.stdout
    assert re.search(r"final weights +equal", done.stdout)
    finished = (tahoe.cwd / "drill").rename(tmp_path / "done")  # or all would be copies of it
    for number, (harm, noticed) in enumerate(HARMS):
        place = shutil.copytree(finished, tmp_path / f"drill-{number}")
        clean, faulty = RunDir(place / "undisturbed"), RunDir(place / "faulty")
        values = faulty.read_config()
        values["tracking"]["uri"] = f"sqlite:///{place}/mlflow.db"
        faulty.write_config(values)
        harm(faulty)
        report = Report(2)
        configs = parse(clean.read_config()), parse(faulty.read_config())
        compare(report, (clean, faulty), configs, NUM_STEPS)
        counts = (
            *("samples_missing", "samples_duplicated", "metrics_changed"),
            *("points_missing", "points_duplicated"),
        )
        changed = {name for name in counts if getattr(report, name)}
        assert changed | (set() if report.weights_equal else {"weights_equal"}) == noticed, harm
        assert report.passed == (noticed == set())

    shutil.copytree(finished, tahoe.cwd / "drill", dirs_exist_ok=True)
    refused = tahoe("drill", "drill/faulty", "seed=1", check=False)
    assert refused.returncode == 93
    assert "takes its config as it is" in refused.stderr
    existing = tahoe("drill", "drill/faulty", "--directory", "drill", check=False)
    assert existing.returncode == 1
    assert "--directory" in existing.stderr
