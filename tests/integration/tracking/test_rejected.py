"""A server that will not take a value has all the others. A real one, as strict as old ones are."""

import json
import math
import os
import re
import time
import urllib.request
from pathlib import Path

import pytest
from tracked_run import StartProcess, TrackedRun

from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow
from orchestrator.tracking.mlflow_store.run import get_or_create_run
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
DEADLINE_S = 60
STRICT = """
import json, os, sys
store, port = sys.argv[1:]
os.environ["_MLFLOW_SERVER_FILE_STORE"] = store
os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = os.environ["ARTIFACTS"]
from io import BytesIO
from mlflow.server import app
from mlflow.server.handlers import initialize_backend_stores
from werkzeug.serving import run_simple

def refusal(asked):
    for kind, longest in (("params", 500), ("tags", 1000)):
        for one in asked.get(kind, ()):
            if len(one["value"]) > longest:
                return f"{one['key']}: {kind} have {longest} characters at most"
    if any(" " in one["key"] for one in asked.get("metrics", ())):
        return "no blanks in the names of metrics"
    if any(one["dataset"]["name"] == "unheard of" for one in asked.get("datasets", ())):
        return "no such data set"

def strict(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = BytesIO(body)
    try:
        why = refusal(json.loads(body or b"{}"))
    except ValueError:
        why = None
    if not why:
        return app(environ, start_response)
    start_response("400 BAD REQUEST", [("Content-Type", "application/json")])
    return [json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": why}).encode()]

initialize_backend_stores(store, default_artifact_root=os.environ["ARTIFACTS"])
run_simple("127.0.0.1", int(port), strict, threaded=True)
"""


@pytest.fixture
def strict(start, store, free_port, tmp_path):
    """The URL of such a server."""
    environment = {"ARTIFACTS": (tmp_path / "artifacts").as_uri()}
    with Path(os.devnull).open("w") as nowhere:
        server = start("-c", STRICT, store, free_port, env=environment, stderr=nowhere)
    url, until_s = f"http://127.0.0.1:{free_port}", time.monotonic() + DEADLINE_S
    while True:
        assert server.poll() is None
        assert time.monotonic() < until_s
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return url
        except OSError:
            time.sleep(0.05)


@pytest.fixture
def tracked(create_tracked_run, strict):
    tracked = create_tracked_run(uri=strict)
    stages = [{"end_epoch": float(epoch), "stage": 0} for epoch in range(20)]
    tracked.configure(recipe={"phases": stages, "a": 1, "z": 2}, data={"name": "unheard of"})
    identity = tracked.run.read_json(tracked.run.identity_file)
    data = {"name": "unheard of", "fingerprint": "f" * 36}
    tracked.run.write_json(tracked.run.identity_file, {**identity, "data": data})
    tracked.run.begin_attempt()
    for step in range(1, 41):
        tracked.log(step, {"train/loss": 1 / step, "a blank": 1.0, "val/top1": 2.0 * step})
    tracked.write_outcome("finished", 1, "long " * 300)
    return tracked


def test_what_a_server_refuses_is_cut_and_the_rest_arrives(
    tracked: TrackedRun, capfd: pytest.CaptureFixture[str]
) -> None:
    sync(tracked.run.path)
    shown = tracked.mlflow_run()
    stages = json.dumps(tracked.run.read_config()["recipe"]["phases"])
    assert len(stages) > 500
    assert shown.data.params["recipe.phases"] == f"{stages[:499]}…"
    assert {"recipe.a", "recipe.z", "seed"} <= set(shown.data.params)
    assert shown.data.tags["tahoe.changed.recipe.phases"] == stages
    assert shown.data.tags["tahoe.outcome"].startswith("finished: long")
    assert len(shown.data.tags["tahoe.outcome"]) == 500
    assert shown.info.status == "FINISHED"
    assert {key for key, _ in tracked.mlflow_points()} == {"train/loss", "val/top1"}
    assert len(tracked.mlflow_points()) == 80
    assert shown.inputs.dataset_inputs == []
    said = capfd.readouterr().err
    for name in ("recipe.phases", "tahoe.outcome", "a blank", "unheard of"):
        assert len(re.findall(f"rejects .*{name}", said)) == 1, name
    sync(tracked.run.path)  # a second time changes nothing
    assert tracked.mlflow_run().data.params == shown.data.params
    assert len(tracked.mlflow_points()) == 80


@pytest.mark.slow
def test_the_shipper_says_what_was_refused(tracked: TrackedRun, ship: StartProcess) -> None:
    process = ship(tracked)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, "")
    assert re.match(r"tracking: .*recipe\.phases", err)
    assert len(err.splitlines()) == 1
    assert tracked.is_shipped
    assert len(tracked.mlflow_points()) == 80


def test_a_run_that_is_deleted_meanwhile_is_no_refused_value(tracked: TrackedRun) -> None:
    mlflow_run = get_or_create_run(tracked.run, tracked.run.read_config())
    tracked.client().delete_run(mlflow_run.run_id)
    with pytest.raises(RunError, match="has been deleted"):
        mlflow_run.set_tags({"a": "b"})
    assert mlflow_run.rejected.reasons == {}


def test_a_param_that_was_cut_comes_back_whole(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    (record,) = records_from_mlflow(tracked.uri)
    assert record.config["recipe.phases"] == tracked.run.read_config()["recipe"]["phases"]
    assert record.metrics["val/top1"] == 80.0
    assert not math.isnan(record.metrics["train/loss"])
