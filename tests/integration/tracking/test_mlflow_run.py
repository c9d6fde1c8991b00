"""One MLflow run for a run directory, whatever happened before; real stores, no processes."""

import json
import math
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from tracked_run import CreateTrackedRun, TrackedRun

from orchestrator.run.node_times import NodeTimes, to_json
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


def artifact(tracked, name):
    location = urlsplit(tracked.mlflow_run().info.artifact_uri)
    return Path(unquote(location.path)) / name


def test_a_fresh_store_in_a_new_place(
    create_tracked_run: CreateTrackedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tracked = create_tracked_run("it's 100% new #1")
    tracked.log(1, {"train/loss": 0.5})
    sync(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()
    assert capfd.readouterr() == ("", "")
    assert artifact(tracked, "config.yaml").read_text() == tracked.run.config_file.read_text()
    assert artifact(tracked, "config.yaml").is_relative_to(tmp_path / "my store" / "mlartifacts")
    assert {path.name for path in tmp_path.iterdir()} == {"my runs", "my store"}


def test_points_arrive_once_with_their_first_value(tracked: TrackedRun) -> None:
    for step in range(1, 58):
        tracked.log(step, {"train/loss": 1 / step, "train/lr": 0.1})
    tracked.append('{"step": 58, "time_ms": 17, "metr\n')
    for step in range(41, 61):
        tracked.log(step, {"train/loss": -1.0, "train/lr": 0.1}, attempt=2)
    tracked.append('{"step": 61, "time')
    times = {"node1": NodeTimes(1.0, 0.0, 0.2), "node2": NodeTimes(1.25, 0.0, 0.0)}
    line = to_json(times, step=100, attempt=2, num_steps=100)
    append_json_line(tracked.run.node_times_file, line)
    sync(tracked.run.path)
    rows = tracked.mlflow_points()
    assert {(key, step) for key, step in rows} == {
        (key, step) for key in ("train/loss", "train/lr") for step in range(1, 61)
    }
    assert all(len(values) == 1 for values in rows.values())
    assert rows["train/loss", 57][0][0] == 1 / 57
    assert rows["train/loss", 58][0][0] == -1.0
    told = tracked.mlflow_run().data.tags["tahoe.rollbacks"]
    assert told == "attempt 2: steps 41-57 computed again"
    assert tracked.mlflow_run().data.tags["tahoe.slow_nodes"].startswith("node2 computes 25 %")


def test_sending_everything_again_doubles_nothing(tracked: TrackedRun) -> None:
    for step in range(1, 51):
        tracked.log(step, {"a": step / 3, "b": math.nan, "c": math.inf, "d": -math.inf})
    tracked.configure(model={"published": {"top1_err": 40.7, "num_params": 60_965_224}})
    sync(tracked.run.path)
    once = tracked.mlflow_points()
    run_id = tracked.mlflow_state["run_id"]
    tracked.run.mlflow_file.unlink()  # now nothing is known to have arrived
    sync(tracked.run.path)
    assert tracked.mlflow_state["run_id"] == run_id
    again = tracked.mlflow_points()
    assert json.dumps(sorted(again.items())) == json.dumps(sorted(once.items()))
    assert len(once) == 4 * 50 + 2
    assert {len(values) for values in again.values()} == {1}
    assert math.isnan(once["b", 7][0][0])
    assert math.isnan(once["c", 7][0][0])  # MLflow's SQL store has no infinity
    assert math.isnan(once["d", 7][0][0])
    assert once["published/top1_err", 0] == [(40.7, 1_700_000_000_000)]


def test_only_what_is_new_is_sent(tracked: TrackedRun) -> None:
    tracked.log(1, {"a": 1})
    sync(tracked.run.path)
    assert tracked.is_shipped
    tracked.run.metrics_file.write_text(tracked.run.metrics_file.read_text().replace("1}", "2}"))
    tracked.log(2, {"a": 3})
    sync(tracked.run.path)
    assert {key: value for key, ((value, _),) in tracked.mlflow_points().items()} == {
        ("a", 1): 1,
        ("a", 2): 3,
    }


def test_a_run_is_found_again_after_a_crash_before_it_was_written_down(
    tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "write_json", crash)
        with pytest.raises(Crash):
            get_or_create_run(tracked.run, tracked.run.read_config())
    made = tracked.mlflow_run().info.run_id
    assert not tracked.run.mlflow_file.exists()
    sync(tracked.run.path)
    assert tracked.mlflow_run().info.run_id == tracked.mlflow_state["run_id"] == made


def test_a_rerun_under_the_same_name_is_another_run(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    tracked.run.mlflow_file.unlink()
    identity = tracked.run.read_json(tracked.run.identity_file)
    tracked.run.write_json(tracked.run.identity_file, {**identity, "uid": "another"})
    sync(tracked.run.path)
    assert len(tracked.client().search_runs([tracked.mlflow_state["experiment_id"]])) == 2


def test_without_a_uid_the_path_tells_which_run_it_is(
    create_tracked_run: CreateTrackedRun, store: str
) -> None:
    tracked = create_tracked_run("it's", uri=store)
    tracked.run.identity_file.unlink()
    for _ in range(2):
        sync(tracked.run.path)
        tracked.run.mlflow_file.unlink()
    assert tracked.mlflow_run().data.tags["tahoe.run_dir"] == str(tracked.run.path)


def test_a_param_that_changed_becomes_a_tag(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    tracked.configure(recipe={"epochs": 120, "warmup": 5})
    sync(tracked.run.path)
    shown = tracked.mlflow_run().data
    assert shown.params["recipe.epochs"] == "90"
    assert shown.params["recipe.warmup"] == "5"
    assert shown.tags["tahoe.changed.recipe.epochs"] == "120"
    assert [key for key in shown.tags if "changed" in key] == ["tahoe.changed.recipe.epochs"]
    tracked.configure(recipe={"epochs": 90})
    sync(tracked.run.path)
    assert tracked.mlflow_run().data.tags["tahoe.changed.recipe.epochs"] == "90"


def test_many_and_long_params(tracked: TrackedRun) -> None:
    tracked.configure(recipe={**{f"key {i}": i for i in range(250)}, "long": "ü" * 7000})
    sync(tracked.run.path)
    params = tracked.mlflow_run().data.params
    assert [params[f"recipe.key {i}"] for i in range(250)] == [str(i) for i in range(250)]
    assert params["recipe.long"] == "ü" * 5999 + "…"


def test_tags(tracked: TrackedRun) -> None:
    tracked.run.begin_attempt(world_size=4)
    tracked.run.begin_attempt(world_size=2)
    identity = tracked.run.read_json(tracked.run.identity_file)
    git = {"commit": "abc123", "dirty": True}
    tracked.run.write_json(tracked.run.identity_file, {**identity, "git": git})
    tracked.configure(model={"published": {"year": 2012}})
    sync(tracked.run.path)
    expected = {
        "mlflow.runName": "run-1",
        "mlflow.source.git.commit": "abc123",
        "tahoe.run_dir": str(tracked.run.path),
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
    assert expected.items() <= tracked.mlflow_run().data.tags.items()
    assert tracked.mlflow_run().info.run_name == "run-1"


def test_the_description_is_one_line_with_the_figures(tracked: TrackedRun) -> None:
    tracked.configure(
        model={"name": "lenet5_1998", "published": {"title": "LeNet-5", "year": 1998}}
    )
    tracked.log(9, {"val/top1": 98.607242, "val/loss": 0.0385159, "perf/images_per_s": 1162.4})
    sync(tracked.run.path)
    told = tracked.mlflow_run().data.tags["mlflow.note.content"]
    for part in ("LeNet-5 (1998)", "digits", "center-28-of-28", "98.61 %", "0.03852", "1,162"):
        assert part in told
    assert "\n" not in told
    tracked.log(10, {"val/top1": 99.0})
    sync(tracked.run.path)
    assert "99.00 %" in tracked.mlflow_run().data.tags["mlflow.note.content"]


def test_a_description_of_the_users_own_stays(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    own = "the one with the broken augmentation"
    tracked.client().set_tag(tracked.mlflow_run().info.run_id, "mlflow.note.content", own)
    tracked.log(10, {"val/top1": 99.0})
    sync(tracked.run.path)
    assert tracked.mlflow_run().data.tags["mlflow.note.content"] == own


def test_each_attempt_says_why_it_ended(tracked: TrackedRun) -> None:
    for said in ({"exit_code": 75}, {"why": "the node was lost"}, None):
        attempt = tracked.run.begin_attempt(world_size=2, nodes="node[1-2]")
        if said:
            tracked.run.end_attempt(attempt, **said)
    tracked.write_outcome("finished", attempt, reason="all 90 steps are done")
    sync(tracked.run.path)
    tags = tracked.mlflow_run().data.tags
    said = [tags[f"tahoe.attempt.{number:04d}"].partition(", ")[2] for number in (1, 2, 3)]
    assert said == [
        "2 ranks on node[1-2]: exit code 75",
        "2 ranks on node[1-2]: the node was lost",
        "2 ranks on node[1-2]: all 90 steps are done",
    ]


def test_the_data_set_and_the_software_are_shown(tracked: TrackedRun) -> None:
    identity = tracked.run.read_json(tracked.run.identity_file)
    data = {"name": "digits", "num_train": 1438, "fingerprint": "0123456789abcdef-fedcba9876543210"}
    packages = {"python": "3.11.7", "packages": {"torch": "2.14.1"}}
    tracked.run.write_json(tracked.run.identity_file, {**identity, **packages, "data": data})
    for _ in range(2):
        sync(tracked.run.path)
    (found,) = tracked.mlflow_run().inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", data["fingerprint"])
    assert json.loads(found.dataset.profile) == {"num_train": 1438}
    assert found.tags[0].value == "training"
    assert yaml.safe_load(artifact(tracked, "environment.yaml").read_text()) == packages


def test_later_evaluations_are_points_once(tracked: TrackedRun) -> None:
    def line(time_ms, **figures):
        known = {"time_ms": time_ms, "data": "/data/digits", "split": "val", "step": 7, "loss": 0.5}
        append_json_line(tracked.run.evaluations_file, {**known, "top5": None, **figures})

    line(1000, protocol="flip-28-of-28", top1=90.0)
    line(2000, protocol="flip-28-of-28", top1=90.0)  # again
    line(3000, protocol="ten-crop-28-of-32", top1=91.0)
    line(4000, protocol="flip-28-of-28", top1=50.0, data="s3://b/other", split="train")
    for _ in range(2):
        sync(tracked.run.path)
    found = {key: values for (key, step), values in tracked.mlflow_points().items() if step == 7}
    assert found == {
        "eval/flip-28-of-28/top1": [(90.0, 1000)],
        "eval/flip-28-of-28/loss": [(0.5, 1000)],
        "eval/ten-crop-28-of-32/top1": [(91.0, 3000)],
        "eval/ten-crop-28-of-32/loss": [(0.5, 3000)],
        "eval/other/train/flip-28-of-28/top1": [(50.0, 4000)],
        "eval/other/train/flip-28-of-28/loss": [(0.5, 4000)],
    }


def test_evaluations_of_other_data_are_told_apart_by_their_bytes(
    create_tracked_run: CreateTrackedRun,
) -> None:
    tracked = create_tracked_run()
    identity = tracked.run.read_json(tracked.run.identity_file)
    own = {"fingerprint": f"{'1' * 16}-{'2' * 16}"}
    tracked.run.write_json(tracked.run.identity_file, {**identity, "data": own})
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
        append_json_line(tracked.run.evaluations_file, line)
    found = {point.key: point.value for point in run_metadata.evaluations(tracked.run)}
    assert found == {
        "eval/val10-aaaaaaaa/center-28-of-28/top1": 50.0,
        "eval/val10-bbbbbbbb/center-28-of-28/top1": 20.0,
        "eval/center-28-of-28/top1": 30.0,
        "eval/digits-cccccccc/center-28-of-28/top1": 40.0,
    }


def test_an_evaluation_of_raw_weights_is_another_than_that_of_averaged_ones(
    tracked: TrackedRun,
) -> None:
    tracked.configure(recipe={"ema_decay": 0.9})
    line = {"data": "/data/digits", "split": "val", "step": 7, "protocol": "center-28-of-28"}
    for number, (weights, top1) in enumerate([("averaged", 90.0), ("raw", 80.0)]):
        figures = {"time_ms": 1000 + number, "top1": top1, "weights": weights}
        append_json_line(tracked.run.evaluations_file, {**line, **figures})
    sync(tracked.run.path)
    found = {key: value for (key, _), ((value, _),) in tracked.mlflow_points().items()}
    assert found == {"eval/center-28-of-28/top1": 90.0, "eval/raw/center-28-of-28/top1": 80.0}


def test_whose_weights_it_began_with_is_a_tag(tracked: TrackedRun) -> None:
    identity = tracked.run.read_json(tracked.run.identity_file)
    source = {"source": "runs/old", "run": "old", "uid": "uid-old", "step": 12}
    tracked.run.write_json(tracked.run.identity_file, {**identity, "init_from": source})
    sync(tracked.run.path)
    tags = tracked.mlflow_run().data.tags
    assert {key: tags[f"init_from.{key}"] for key in source} == {**source, "step": "12"}


def test_a_record_too_long_for_a_tag_is_an_artifact(tracked: TrackedRun) -> None:
    for number in range(300):
        names = [f"run-{number:03d}-{member}" for member in range(5)]
        append_json_line(tracked.run.evaluations_file, EVALUATION | {"ensemble": {"runs": names}})
    sync(tracked.run.path)
    (record,) = records_from_mlflow(tracked.uri)
    assert record.evaluations == read_record(tracked.run).evaluations
    assert len(record.evaluations) == 300


def test_no_secret_leaves(tracked: TrackedRun) -> None:
    url = "https://me:hunter2@shards.example.org/digits"
    tracked.configure(data={"url": f"{url}?sig=hunter2", "token": "hunter2"})
    tracked.run.patch_file.write_bytes(f"+url = {url}\n".encode() + b"+\xff\xfe binary\r\n")
    tracked.run.begin_attempt()
    tracked.write_outcome("failed_permanently", reason=f"cannot read {url}")
    sync(tracked.run.path)
    shown = tracked.mlflow_run().data
    assert "hunter2" not in f"{shown.params} {shown.tags} {tracked.mlflow_state}"
    assert shown.params["data.url"] == "https://shards.example.org/digits?sig=***"
    config = artifact(tracked, "config.yaml").read_text()
    assert "hunter2" not in config
    assert yaml.safe_load(config)["recipe"] == tracked.run.read_config()["recipe"]
    patch = artifact(tracked, "git.diff").read_bytes()
    assert patch == b"+url = https://shards.example.org/digits\n+\xff\xfe binary\r\n"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("finished", "FINISHED"), ("stopped", "KILLED"), ("failed_permanently", "FAILED"),
     ("nonsense", "FAILED"), (None, "FAILED")],
)  # fmt: skip
def test_status_by_verdict(tracked: TrackedRun, outcome, status) -> None:
    attempt = tracked.run.begin_attempt()
    tracked.log(1, {"a": 1})
    if outcome:
        tracked.write_outcome(outcome, attempt, "because")
    sync(tracked.run.path)
    shown = tracked.mlflow_run()
    assert shown.info.status == status
    assert shown.info.end_time == tracked.clock_ms
    assert ("because" if outcome else "no outcome") in shown.data.tags["tahoe.outcome"]


def test_a_run_lasted_as_long_as_its_training_whenever_it_is_sent(tracked: TrackedRun) -> None:
    attempt = tracked.run.begin_attempt(world_size=1)
    trained_until_s = tracked.run.attempt_start_s(attempt) + 41
    outcome = {"outcome": "finished", "attempt": attempt, "reason": "", "time_s": trained_until_s}
    tracked.run.write_json(tracked.run.outcome_file, outcome)
    sync(tracked.run.path)  # as the shipper does, for which the launcher waits
    assert tracked.mlflow_run().info.end_time == int(1000 * trained_until_s)
    end = {"ended_s": trained_until_s + 25, **tracked.run.attempt_outcome(attempt)}
    tracked.run.end_attempt(attempt, **end)
    sync(tracked.run.path)
    assert tracked.mlflow_run().info.end_time == int(1000 * trained_until_s)
    assert tracked.mlflow_run().data.tags["tahoe.training_s"] == "41"


def test_status_over_attempts(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    assert tracked.mlflow_run().info.status == "SCHEDULED"
    tracked.write_outcome("stopped", tracked.run.begin_attempt())
    tracked.run.end_attempt(1, ended_s=1_800_000_000.0)
    sync(tracked.run.path)
    assert tracked.mlflow_run().info.status == "KILLED"
    assert tracked.mlflow_run().info.end_time == 1_800_000_000_000
    second = tracked.run.begin_attempt()
    with tracked.run.lock():
        sync(tracked.run.path)
        assert tracked.mlflow_run().info.status == "RUNNING"
    sync(tracked.run.path)
    assert tracked.mlflow_run().info.status == "FAILED"  # the outcome is the first attempt's
    tracked.write_outcome("finished", second)
    sync(tracked.run.path)
    assert tracked.mlflow_run().info.status == "FINISHED"


def test_a_store_that_was_replaced_gets_everything(
    tracked: TrackedRun, create_tracked_run: CreateTrackedRun, tmp_path: Path
) -> None:
    tracked.log(1, {"a": 1})
    sync(tracked.run.path)
    tracked.uri = f"sqlite:///{tmp_path}/other/mlflow.db"
    tracked.configure()
    sync(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()


def test_what_was_deleted_in_mlflow_is_told(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    run_id, experiment_id = tracked.mlflow_state["run_id"], tracked.mlflow_state["experiment_id"]
    tracked.client().delete_run(run_id)
    with pytest.raises(RunError, match=f"mlflow runs restore --run-id {run_id}"):
        sync(tracked.run.path)
    tracked.run.mlflow_file.unlink()
    tracked.client().delete_experiment(experiment_id)
    with pytest.raises(RunError, match=f"restore -x {experiment_id}"):
        sync(tracked.run.path)


@pytest.mark.parametrize("place", ["sqlite:///{path}/file/mlflow.db", "http://u:hunter2@{host}"])
def test_a_store_that_cannot_be_used(
    tracked: TrackedRun, tmp_path: Path, free_port: int, place
) -> None:
    tmp_path.joinpath("file").touch()
    tracked.uri = place.format(path=tmp_path, host=f"127.0.0.1:{free_port}")
    tracked.configure()
    with pytest.raises(RunError, match="`tahoe sync") as raised:
        sync(tracked.run.path)
    assert "hunter2" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run at"):
        sync(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_shipper_at_a_time(tracked: TrackedRun) -> None:
    with shipper._lock(tracked.run), pytest.raises(RunError, match="another shipper of run-1"):
        sync(tracked.run.path, wait_s=0.2)
    sync(tracked.run.path)
