"""Runs read from an MLflow store are what their directories say, which may be gone."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from cli_runner import Tahoe

from orchestrator.cli.verbs.select_runs import select_runs
from orchestrator.redact import truncate_json
from orchestrator.run.rundir import RunError, append_json_line
from orchestrator.tracking.mlflow_store.import_results import import_runs, timm_results
from orchestrator.tracking.mlflow_store.mlflow_records import metric_history, records_from_mlflow
from orchestrator.tracking.records.provenance import provenance_edges
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
ALEXNET = {"title": "AlexNet", "year": 2012, "top1_err": 40.7, "source": "a paper"}
ORIGIN = {"source": "elsewhere", "run": "older", "uid": "uid-older", "step": 7}
EVALUATION = {
    "time_ms": 1000,
    "data": "/data/digits",
    "split": "val",
    "step": 7,
    "protocol": "p",
    "ensemble": {"runs": ["b", "a"], "top1": 1.0},
}


@pytest.fixture
def runs(create_tracked_run, store):
    """Three runs in the store: one whose config was changed later, one that waits, one at work."""
    made = [create_tracked_run(name, uri=store) for name in ("b", "a", "c")]
    for number, tracked in enumerate(made):
        batch, name = 8 * (number + 1), f"timm/net{number}"
        tracked.configure(
            recipe={"global_batch_size": batch, "lr": 1e-05, "what": "1"},
            model={"name": name, "published": ALEXNET},
        )
        identity = tracked.run.read_json(tracked.run.identity_file)
        data = {"name": "digits", "fingerprint": "f" * 36}
        identity |= {"created_s": 1.7e9 + number, "data": data, "init_from": ORIGIN}
        tracked.run.write_json(tracked.run.identity_file, identity)
        sync(tracked.run.path)
    first, _, last = made
    for tracked in (first, last):
        tracked.run.begin_attempt(world_size=2)
        tracked.log(0, {"model/gmacs": 0.5})
        tracked.log(30, {"train/loss": 2.0, "perf/images_per_s": 100.0, "val/top1": 9.5})
        tracked.log(40, {"train/loss": 1.0, "perf/images_per_s": 300.0})
        tracked.run.system_dir.mkdir()
        node = {"step": 10**9, "time_ms": 1, "metrics": {"system/n/cpu": 5.0}}
        tracked.run.system_file("n").write_text(json.dumps(node) + "\n")
    first.write_outcome("finished", 1, "all: done")
    config = first.run.read_config()
    config["recipe"]["epochs"] = 100
    first.run.write_config({**config, "seed": 2})
    append_json_line(first.run.evaluations_file, EVALUATION)
    with last.run.lock():
        for tracked in (first, last):
            tracked.run.end_attempt(1, exit_code=0) if tracked is first else None
            sync(tracked.run.path)
    return made


def comparable(record):
    values = asdict(record)
    return values | {"config": {k: truncate_json(v, 100) for k, v in values["config"].items()}}


def test_records_from_mlflow_equal_those_of_the_directories(runs, store: str) -> None:
    found = records_from_mlflow(store)
    assert [one.id for one in found] == ["b", "a", "c"]
    assert [one.status for one in found] == ["finished", "scheduled", "running"]
    assert found[0].config["recipe.epochs"] == 100
    assert found[0].config["recipe.lr"] == 1e-05
    for tracked, one in zip(runs[:2], found, strict=False):
        here = read_record(tracked.run)
        assert comparable(one) == comparable(here)
        assert provenance_edges([one]) == provenance_edges([here])
    assert found[0].images_per_s == 200
    assert found[2].images_per_s == 300  # of a run that goes on, the last
    assert metric_history(store)(found[0], "train/loss") == {30: 2.0, 40: 1.0}


def test_what_is_meant(runs, store: str, tmp_path: Path) -> None:
    def chosen(*words):
        return [one.id for one in select_runs(words, tmp_path, store)]

    assert chosen() == ["b", "a", "c"]
    assert chosen("model=net1,net2") == ["a", "c"]
    assert chosen("data=digits", "protocol=center-28-of-28", "recipe.epochs=100") == ["b"]
    assert chosen("data=dig*", "status=running") == ["c"]
    assert chosen(runs[1].mlflow_state["run_id"], runs[0].mlflow_state["run_id"], "seed=1") == ["a"]
    with pytest.raises(RunError, match="data=it's"):
        chosen("data=it's")
    with pytest.raises(RunError, match="runs/b"):
        chosen("runs/b")
    with pytest.raises(RunError, match=r"d{32}"):
        chosen("d" * 32)
    with pytest.raises(RunError, match="no tracking store"):
        select_runs([], tmp_path, f"sqlite:///{tmp_path}/no/where.db")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_the_verbs_need_no_directories(runs, store: str, tmp_path: Path) -> None:
    file = tmp_path / "results-imagenet.csv"
    file.write_text(
        "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation\n"
        "resnet50.a1,288,81.2,18.8,95.1,4.9,25.56,1.0,bicubic\n"
    )
    import_runs(timm_results(str(file)), store, "tests")
    for tracked in runs:
        shutil.rmtree(tracked.run.path)
    tahoe = Tahoe(tmp_path)
    sections = json.loads(tahoe("compare", "--from-mlflow", store, "--json").stdout)
    names = {run["id"]: run["status"] for s in sections for row in s["rows"] for run in row["runs"]}
    imported = "resnet50.a1 at 288, by timm"
    assert names[imported] == "imported"
    places = {(s["data"], s["protocol"]) for s in sections if imported in json.dumps(s)}
    assert places == {("imagenet", "center-288-of-288")}
    told = tahoe("compare", "--from-mlflow", store, "data=digits", "--plot", "curves.png").stdout
    assert "9.50" in told
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    listed = json.loads(tahoe("list", "--from-mlflow", store, "--json").stdout)
    assert {one["run"]: one["step"] for one in listed} == {"b": 40, "a": None, "c": 40} | {
        imported: 0
    }
    report = ("report", "--from-mlflow", store, "--json")
    points = json.loads(tahoe(*report, "--data", "digits").stdout)["points"]
    assert [point["top1"] for point in points] == [90.5, 90.5]
    points = json.loads(tahoe(*report, "--data", "imagenet").stdout)["points"]
    assert not [point for point in points if point["is_measured"]]
