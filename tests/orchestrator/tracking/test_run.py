"""One MLflow run for a run directory, whatever happened before; real stores, no processes."""

import json
import math
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from orchestrator.run.rundir import RunDir, RunError, append_json_line
from orchestrator.tracking.mlflow_store import run_metadata
from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow
from orchestrator.tracking.mlflow_store.run import get_or_create_run
from orchestrator.tracking.records.record import read_record
from orchestrator.tracking.shipping import shipper
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


EVALUATION = {"time_ms": 1000, "data": "/data/digits", "split": "val", "step": 7, "protocol": "p"}


def artifact(scene, name):
    location = urlsplit(scene.shown().info.artifact_uri)
    return Path(unquote(location.path)) / name


def test_a_fresh_store_in_a_new_place(make_scene, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    scene = make_scene("it's 100% new #1")
    scene.log(1, {"train/loss": 0.5})
    sync(scene.run.path)
    assert scene.stored() == scene.logged()
    assert capfd.readouterr() == ("", "")
    assert artifact(scene, "config.yaml").read_text() == scene.run.config_file.read_text()
    assert artifact(scene, "config.yaml").is_relative_to(tmp_path / "my store" / "mlartifacts")
    assert {path.name for path in tmp_path.iterdir()} == {"my runs", "my store"}


def test_points_arrive_once_with_their_first_value(scene):
    for step in range(1, 58):
        scene.log(step, {"train/loss": 1 / step, "train/lr": 0.1})
    scene.append('{"step": 58, "time_ms": 17, "metr\n')
    for step in range(41, 61):
        scene.log(step, {"train/loss": -1.0, "train/lr": 0.1}, attempt=2)
    scene.append('{"step": 61, "time')
    sync(scene.run.path)
    rows = scene.stored()
    assert {(key, step) for key, step in rows} == {
        (key, step) for key in ("train/loss", "train/lr") for step in range(1, 61)
    }
    assert all(len(values) == 1 for values in rows.values())
    assert rows["train/loss", 57][0][0] == 1 / 57
    assert rows["train/loss", 58][0][0] == -1.0
    told = scene.shown().data.tags["tahoe.rollbacks"]
    assert told == "attempt 2: steps 41-57 computed again"


def test_sending_everything_again_doubles_nothing(scene):
    for step in range(1, 51):
        scene.log(step, {"a": step / 3, "b": math.nan, "c": math.inf, "d": -math.inf})
    scene.configure(model={"published": {"top1_err": 40.7, "num_params": 60_965_224}})
    sync(scene.run.path)
    once = scene.stored()
    run_id = scene.mark["run_id"]
    scene.run.mlflow_file.unlink()  # now nothing is known to have arrived
    sync(scene.run.path)
    assert scene.mark["run_id"] == run_id
    again = scene.stored()
    assert json.dumps(sorted(again.items())) == json.dumps(sorted(once.items()))
    assert len(once) == 4 * 50 + 2
    assert {len(values) for values in again.values()} == {1}
    assert math.isnan(once["b", 7][0][0])
    assert math.isnan(once["c", 7][0][0])  # MLflow's SQL store has no infinity
    assert math.isnan(once["d", 7][0][0])
    assert once["published/top1_err", 0] == [(40.7, 1_700_000_000_000)]


def test_only_what_is_new_is_sent(scene):
    scene.log(1, {"a": 1})
    sync(scene.run.path)
    assert scene.is_shipped
    scene.run.metrics_file.write_text(scene.run.metrics_file.read_text().replace("1}", "2}"))
    scene.log(2, {"a": 3})
    sync(scene.run.path)
    assert {key: value for key, ((value, _),) in scene.stored().items()} == {
        ("a", 1): 1,
        ("a", 2): 3,
    }


def test_a_run_is_found_again_after_a_crash_before_it_was_written_down(scene, monkeypatch):
    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "write_json", crash)
        with pytest.raises(Crash):
            get_or_create_run(scene.run, scene.run.read_config())
    made = scene.shown().info.run_id
    assert not scene.run.mlflow_file.exists()
    sync(scene.run.path)
    assert scene.shown().info.run_id == scene.mark["run_id"] == made


def test_a_rerun_under_the_same_name_is_another_run(scene):
    sync(scene.run.path)
    scene.run.mlflow_file.unlink()
    identity = scene.run.read_json(scene.run.identity_file)
    scene.run.write_json(scene.run.identity_file, {**identity, "uid": "another"})
    sync(scene.run.path)
    assert len(scene.client().search_runs([scene.mark["experiment_id"]])) == 2


def test_without_a_uid_the_path_tells_which_run_it_is(make_scene, store):
    scene = make_scene("it's", uri=store)
    scene.run.identity_file.unlink()
    for _ in range(2):
        sync(scene.run.path)
        scene.run.mlflow_file.unlink()
    assert scene.shown().data.tags["tahoe.run_dir"] == str(scene.run.path)


def test_a_param_that_changed_becomes_a_tag(scene):
    sync(scene.run.path)
    scene.configure(recipe={"epochs": 120, "warmup": 5})
    sync(scene.run.path)
    shown = scene.shown().data
    assert shown.params["recipe.epochs"] == "90"
    assert shown.params["recipe.warmup"] == "5"
    assert shown.tags["tahoe.changed.recipe.epochs"] == "120"
    assert [key for key in shown.tags if "changed" in key] == ["tahoe.changed.recipe.epochs"]
    scene.configure(recipe={"epochs": 90})
    sync(scene.run.path)
    assert scene.shown().data.tags["tahoe.changed.recipe.epochs"] == "90"


def test_many_and_long_params(scene):
    scene.configure(recipe={**{f"key {i}": i for i in range(250)}, "long": "ü" * 7000})
    sync(scene.run.path)
    params = scene.shown().data.params
    assert [params[f"recipe.key {i}"] for i in range(250)] == [str(i) for i in range(250)]
    assert params["recipe.long"] == "ü" * 5999 + "…"


def test_tags(scene):
    scene.run.begin_attempt(world_size=4)
    scene.run.begin_attempt(world_size=2)
    identity = scene.run.read_json(scene.run.identity_file)
    git = {"commit": "abc123", "dirty": True}
    scene.run.write_json(scene.run.identity_file, {**identity, "git": git})
    scene.configure(model={"published": {"year": 2012}})
    sync(scene.run.path)
    expected = {
        "mlflow.runName": "run-1",
        "mlflow.source.git.commit": "abc123",
        "tahoe.run_dir": str(scene.run.path),
        "tahoe.run_id": "run-1",
        "tahoe.model": "alexnet",
        "tahoe.year": "2012",
        "tahoe.data": "digits",
        "tahoe.protocol": "center-28-of-28",
        "seed": "1",
        "git_commit": "abc123",
        "git_dirty": "true",
        "world_size": "2",
        "tahoe.attempts": "2",
    }
    assert expected.items() <= scene.shown().data.tags.items()
    assert scene.shown().info.run_name == "run-1"


def test_the_description_is_one_line_with_the_figures(scene):
    scene.configure(model={"name": "lenet5_1998", "published": {"title": "LeNet-5", "year": 1998}})
    scene.log(9, {"val/top1": 98.607242, "val/loss": 0.0385159, "perf/images_per_s": 1162.4})
    sync(scene.run.path)
    told = scene.shown().data.tags["mlflow.note.content"]
    for part in ("LeNet-5 (1998)", "digits", "center-28-of-28", "98.61 %", "0.03852", "1,162"):
        assert part in told
    assert "\n" not in told
    scene.log(10, {"val/top1": 99.0})
    sync(scene.run.path)
    assert "99.00 %" in scene.shown().data.tags["mlflow.note.content"]


def test_a_description_of_the_users_own_stays(scene):
    sync(scene.run.path)
    own = "the one with the broken augmentation"
    scene.client().set_tag(scene.shown().info.run_id, "mlflow.note.content", own)
    scene.log(10, {"val/top1": 99.0})
    sync(scene.run.path)
    assert scene.shown().data.tags["mlflow.note.content"] == own


def test_each_attempt_says_why_it_ended(scene):
    for said in ({"exit_code": 75}, {"why": "the node was lost"}, None):
        attempt = scene.run.begin_attempt(world_size=2, nodes="node[1-2]")
        if said:
            scene.run.end_attempt(attempt, **said)
    scene.judge("finished", attempt, reason="all 90 steps are done")
    sync(scene.run.path)
    tags = scene.shown().data.tags
    said = [tags[f"tahoe.attempt.{number:04d}"].partition(", ")[2] for number in (1, 2, 3)]
    assert said == [
        "2 ranks on node[1-2]: exit code 75",
        "2 ranks on node[1-2]: the node was lost",
        "2 ranks on node[1-2]: all 90 steps are done",
    ]


def test_the_data_set_and_the_software_are_shown(scene):
    identity = scene.run.read_json(scene.run.identity_file)
    data = {"name": "digits", "num_train": 1438, "fingerprint": "0123456789abcdef-fedcba9876543210"}
    packages = {"python": "3.11.7", "packages": {"torch": "2.14.1"}}
    scene.run.write_json(scene.run.identity_file, {**identity, **packages, "data": data})
    for _ in range(2):
        sync(scene.run.path)
    (found,) = scene.shown().inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", data["fingerprint"])
    assert json.loads(found.dataset.profile) == {"num_train": 1438}
    assert found.tags[0].value == "training"
    assert yaml.safe_load(artifact(scene, "environment.yaml").read_text()) == packages


def test_later_evaluations_are_points_once(scene):
    def line(time_ms, **figures):
        known = {"time_ms": time_ms, "data": "/data/digits", "split": "val", "step": 7, "loss": 0.5}
        append_json_line(scene.run.evaluations_file, {**known, "top5": None, **figures})

    line(1000, protocol="flip-28-of-28", top1=90.0)
    line(2000, protocol="flip-28-of-28", top1=90.0)  # again
    line(3000, protocol="ten-crop-28-of-32", top1=91.0)
    line(4000, protocol="flip-28-of-28", top1=50.0, data="s3://b/other", split="train")
    for _ in range(2):
        sync(scene.run.path)
    found = {key: values for (key, step), values in scene.stored().items() if step == 7}
    assert found == {
        "eval/flip-28-of-28/top1": [(90.0, 1000)],
        "eval/flip-28-of-28/loss": [(0.5, 1000)],
        "eval/ten-crop-28-of-32/top1": [(91.0, 3000)],
        "eval/ten-crop-28-of-32/loss": [(0.5, 3000)],
        "eval/other/train/flip-28-of-28/top1": [(50.0, 4000)],
        "eval/other/train/flip-28-of-28/loss": [(0.5, 4000)],
    }


def test_evaluations_of_other_data_are_told_apart_by_their_bytes(make_scene):
    scene = make_scene()
    identity = scene.run.read_json(scene.run.identity_file)
    own = {"fingerprint": f"{'1' * 16}-{'2' * 16}"}
    scene.run.write_json(scene.run.identity_file, {**identity, "data": own})
    for number, (data, fingerprint, top1) in enumerate(
        [
            ("s3://b/a/val10", "a" * 64, 10.0),
            ("s3://b/b/val10?token=hidden/key", "b" * 64, 20.0),
            ("s3://b/moved/digits", "2" * 64, 30.0),  # the run's own, elsewhere
            ("/data/digits", "c" * 64, 40.0),  # what lies there now is not what the run has
            ("/mnt/a/val10", "a" * 64, 50.0),  # the first again: the latest counts
        ]
    ):
        line = {"data": data, "fingerprint": fingerprint, "split": "val", "step": 7, "top1": top1}
        line |= {"protocol": "center-28-of-28", "weights": "raw", "time_ms": 1000 + number}
        append_json_line(scene.run.evaluations_file, line)
    found = {point.key: point.value for point in run_metadata.evaluations(scene.run)}
    assert found == {
        "eval/val10-aaaaaaaa/center-28-of-28/top1": 50.0,
        "eval/val10-bbbbbbbb/center-28-of-28/top1": 20.0,
        "eval/center-28-of-28/top1": 30.0,
        "eval/digits-cccccccc/center-28-of-28/top1": 40.0,
    }


def test_an_evaluation_of_raw_weights_is_another_than_that_of_averaged_ones(scene):
    scene.configure(recipe={"ema_decay": 0.9})
    line = {"data": "/data/digits", "split": "val", "step": 7, "protocol": "center-28-of-28"}
    for number, (weights, top1) in enumerate([("averaged", 90.0), ("raw", 80.0)]):
        figures = {"time_ms": 1000 + number, "top1": top1, "weights": weights}
        append_json_line(scene.run.evaluations_file, {**line, **figures})
    sync(scene.run.path)
    found = {key: value for (key, _), ((value, _),) in scene.stored().items()}
    assert found == {"eval/center-28-of-28/top1": 90.0, "eval/raw/center-28-of-28/top1": 80.0}


def test_whose_weights_it_began_with_is_a_tag(scene):
    identity = scene.run.read_json(scene.run.identity_file)
    source = {"source": "runs/old", "run": "old", "uid": "uid-old", "step": 12}
    scene.run.write_json(scene.run.identity_file, {**identity, "init_from": source})
    sync(scene.run.path)
    tags = scene.shown().data.tags
    assert {key: tags[f"init_from.{key}"] for key in source} == {**source, "step": "12"}


def test_a_record_too_long_for_a_tag_is_an_artifact(scene):
    for number in range(300):
        names = [f"run-{number:03d}-{member}" for member in range(5)]
        append_json_line(scene.run.evaluations_file, EVALUATION | {"ensemble": {"runs": names}})
    sync(scene.run.path)
    (record,) = records_from_mlflow(scene.uri)
    assert record.evaluations == read_record(scene.run).evaluations
    assert len(record.evaluations) == 300


def test_no_secret_leaves(scene):
    url = "https://me:hunter2@shards.example.org/digits"
    scene.configure(data={"url": f"{url}?sig=hunter2", "token": "hunter2"})
    scene.run.patch_file.write_bytes(f"+url = {url}\n".encode() + b"+\xff\xfe binary\r\n")
    scene.run.begin_attempt()
    scene.judge("failed_permanently", reason=f"cannot read {url}")
    sync(scene.run.path)
    shown = scene.shown().data
    assert "hunter2" not in f"{shown.params} {shown.tags} {scene.mark}"
    assert shown.params["data.url"] == "https://shards.example.org/digits?sig=***"
    config = artifact(scene, "config.yaml").read_text()
    assert "hunter2" not in config
    assert yaml.safe_load(config)["recipe"] == scene.run.read_config()["recipe"]
    patch = artifact(scene, "git.diff").read_bytes()
    assert patch == b"+url = https://shards.example.org/digits\n+\xff\xfe binary\r\n"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed_permanently", "FAILED"),
     ("nonsense", "FAILED"), (None, "FAILED")],
)  # fmt: skip
def test_status_by_verdict(scene, outcome, status):
    attempt = scene.run.begin_attempt()
    scene.log(1, {"a": 1})
    if outcome:
        scene.judge(outcome, attempt, "because")
    sync(scene.run.path)
    shown = scene.shown()
    assert shown.info.status == status
    assert shown.info.end_time == scene.clock_ms
    assert ("because" if outcome else "no outcome") in shown.data.tags["tahoe.outcome"]


def test_a_run_lasted_as_long_as_its_training_whenever_it_is_sent(scene):
    attempt = scene.run.begin_attempt(world_size=1)
    trained_until_s = scene.run.attempt_start_s(attempt) + 41
    outcome = {"outcome": "finished", "attempt": attempt, "reason": "", "time_s": trained_until_s}
    scene.run.write_json(scene.run.outcome_file, outcome)
    sync(scene.run.path)  # as the shipper does, for which the launcher waits
    assert scene.shown().info.end_time == int(1000 * trained_until_s)
    end = {"ended_s": trained_until_s + 25, **scene.run.attempt_outcome(attempt)}
    scene.run.end_attempt(attempt, **end)
    sync(scene.run.path)
    assert scene.shown().info.end_time == int(1000 * trained_until_s)
    assert scene.shown().data.tags["tahoe.training_s"] == "41"


def test_status_over_attempts(scene):
    sync(scene.run.path)
    assert scene.shown().info.status == "SCHEDULED"
    scene.judge("stopped", scene.run.begin_attempt())
    scene.run.end_attempt(1, ended_s=1_800_000_000.0)
    sync(scene.run.path)
    assert scene.shown().info.status == "KILLED"
    assert scene.shown().info.end_time == 1_800_000_000_000
    second = scene.run.begin_attempt()
    with scene.run.lock():
        sync(scene.run.path)
        assert scene.shown().info.status == "RUNNING"
    sync(scene.run.path)
    assert scene.shown().info.status == "FAILED"  # the outcome is the first attempt's
    scene.judge("finished", second)
    sync(scene.run.path)
    assert scene.shown().info.status == "FINISHED"


def test_a_store_that_was_replaced_gets_everything(scene, make_scene, tmp_path):
    scene.log(1, {"a": 1})
    sync(scene.run.path)
    scene.uri = f"sqlite:///{tmp_path}/other/mlflow.db"
    scene.configure()
    sync(scene.run.path)
    assert scene.stored() == scene.logged()


def test_what_was_deleted_in_mlflow_is_told(scene):
    sync(scene.run.path)
    run_id, experiment_id = scene.mark["run_id"], scene.mark["experiment_id"]
    scene.client().delete_run(run_id)
    with pytest.raises(RunError, match=f"mlflow runs restore --run-id {run_id}"):
        sync(scene.run.path)
    scene.run.mlflow_file.unlink()
    scene.client().delete_experiment(experiment_id)
    with pytest.raises(RunError, match=f"restore -x {experiment_id}"):
        sync(scene.run.path)


@pytest.mark.parametrize("place", ["sqlite:///{path}/file/mlflow.db", "http://u:hunter2@{host}"])
def test_a_store_that_cannot_be_used(scene, tmp_path, free_port, place):
    tmp_path.joinpath("file").touch()
    scene.uri = place.format(path=tmp_path, host=f"127.0.0.1:{free_port}")
    scene.configure()
    with pytest.raises(RunError, match="`tahoe sync") as raised:
        sync(scene.run.path)
    assert "hunter2" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_no_run_there(tmp_path):
    with pytest.raises(RunError, match="no run at"):
        sync(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_shipper_at_a_time(scene):
    with shipper._lock(scene.run), pytest.raises(RunError, match="another shipper of run-1"):
        sync(scene.run.path, wait_s=0.2)
    sync(scene.run.path)
