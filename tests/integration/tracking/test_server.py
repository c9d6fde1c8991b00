"""A real MLflow server that dies while a run is shipped to it."""

import json
import math
import os
import re
import select
import shutil
import signal
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
from cli_runner import Tahoe
from tracked_run import CreateTrackedRun, Eventually, StartProcess

from orchestrator.tracking.mlflow_store.client import MlflowClient
from orchestrator.tracking.shipping.shipper import sync

DEADLINE_S = 100
SERVE = """
import sys
from orchestrator.tracking.mlflow_ui.serve import serve_ui
serve_ui(sys.argv[1], int(sys.argv[2]))
"""
# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read()
    except (urllib.error.URLError, OSError):
        return None


@pytest.fixture
def server(start, store, free_port, eventually):
    """Starts `tahoe ui` on the store, waits until it answers, and can kill it."""
    groups = []

    def begin():
        with Path(os.devnull).open("w") as nowhere:
            process = start("-c", SERVE, store, free_port, stderr=nowhere, start_new_session=True)
        groups.append(process.pid)
        link = process.stdout.readline()
        eventually(lambda: fetch(f"http://127.0.0.1:{free_port}/health") == b"OK")
        return link

    def kill():
        os.killpg(groups.pop(), signal.SIGKILL)

    yield begin, kill, f"http://127.0.0.1:{free_port}"
    while groups:
        kill()


@pytest.mark.timeout(300)
def test_points_survive_a_dead_server(
    server,
    create_tracked_run: CreateTrackedRun,
    ship: StartProcess,
    eventually: Eventually,
    store: str,
    tmp_path: Path,
) -> None:
    begin, kill, url = server
    direct = create_tracked_run("direct", uri=store)
    sync(direct.run.path)
    assert begin().startswith(
        f"{url}/#/experiments/{direct.mlflow_state['experiment_id']}/runs?workflowType=machine_learning&"
    )
    path = f"run_uuid={direct.mlflow_state['run_id']}&path={quote('config.yaml')}"
    assert fetch(f"{url}/get-artifact?{path}") == direct.run.config_file.read_bytes()

    tracked = create_tracked_run("shipped", uri=url.replace("//", "//me:hunter2@"))
    tracked.configure(tracking={"experiment": "over http"}, recipe={"empty": ""})
    mark = {"run_id": "0" * 32, "shipped_bytes": {"metrics.jsonl": 9}}
    tracked.run.write_json(tracked.run.mlflow_file, mark)
    tracked.run.begin_attempt()
    tracked.log(1, {"a": math.inf, "b": -0.0, "c": 1e-300})
    shipper = ship(tracked, "--flush-timeout-s", 60)
    eventually(lambda: tracked.is_shipped)
    for step in range(2, 1500):  # several batches are on their way when the server dies
        tracked.log(step, {"a": step / 3, "b": -step, "c": step**0.5})
    eventually(lambda: tracked.num_shipped_bytes > 1000)
    kill()
    for step in range(1500, 1600):
        tracked.log(step, {"a": step / 3})
    log = tracked.run.path / "logs" / "shipper.log"
    eventually(lambda: "retrying in" in log.read_text())
    assert not tracked.is_shipped
    begin()
    tracked.log(1600, {"a": math.nan})
    tracked.write_outcome("finished")
    assert shipper.communicate(timeout=DEADLINE_S) == ("", "")
    assert shipper.returncode == 0

    tracked.run.mlflow_file.unlink()
    sync(tracked.run.path)  # all of it again
    rows, expected = tracked.mlflow_points(), tracked.logged_points()
    assert math.isnan(rows.pop(("a", 1600))[0][0])
    assert math.isnan(expected.pop(("a", 1600))[0][0])
    assert math.isnan(rows.pop(("a", 1))[0][0])  # MLflow's SQL store has no infinity
    assert math.isinf(expected.pop(("a", 1))[0][0])
    assert rows == expected
    shown = tracked.mlflow_run()
    assert shown.info.status == "FINISHED"
    assert shown.data.params["recipe.empty"] == ""
    assert "hunter2" not in f"{shown} {tracked.mlflow_state} {log.read_text()}"
    assert not [
        file
        for file in tmp_path.rglob("*")
        if file.name in ("mlruns", "mlartifacts") and file.parent.name != "my store"
    ]


@pytest.mark.timeout(300)
def test_another_machine_can_sync(
    server, create_tracked_run: CreateTrackedRun, tmp_path: Path
) -> None:
    """A run was copied off its cluster, which reaches no server, and is sent from there."""
    begin, _, url = server
    tracked = create_tracked_run("copied", uri=url)
    tracked.run.begin_attempt()
    for step in range(1, 30):
        tracked.log(step, {"a": step / 3})
    begin()
    sync(tracked.run.path)  # while the run goes on
    mark = tracked.run.mlflow_file.read_bytes()
    for step in range(30, 60):
        tracked.log(step, {"a": step / 3})
    tracked.write_outcome("finished")
    there = tmp_path / "another machine" / "runs" / "copied"
    shutil.copytree(tracked.run.path, there)
    tracked.run.path.rename(tracked.run.path.with_name("out of reach"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(there.parent))
        Tahoe(there.parent)("sync", str(there))
    tracked.run.path.with_name("out of reach").rename(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()
    assert tracked.mlflow_run().info.status == "FINISHED"

    there.rename(there.with_name("out of reach"))  # from the cluster
    tracked.run.mlflow_file.write_bytes(mark)  # which knows nothing of it
    sync(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_pictures_survive_a_dead_server(
    server, tmp_path: Path, digits: Path, eventually: Eventually
) -> None:
    """It dies while they are drawn; the run is none the worse, and `tahoe sync` sends them."""
    begin, kill, url = server
    begin()
    tahoe, run = Tahoe(tmp_path), tmp_path / "run"
    options = (f"data.url='{digits}'", f"tracking.uri={url}", f"run_dir={run}", "recipe.epochs=1")
    training = tahoe.start("train", *options)
    assert training.finish() == 0, training.output
    (pid,) = re.findall(r"process (\d+) draws", training.output)
    drawing = os.pidfd_open(int(pid))
    eventually((run / "plots").exists)
    kill()
    eventually(lambda: select.select([drawing], [], [], 0)[0])
    os.close(drawing)
    drawn = {file.name: file.stat().st_mtime_ns for file in (run / "plots").iterdir()}
    assert {"confusion.png", "top_errors.png", "augmented_views.png"} <= set(drawn)
    assert (run / "logs" / "plots.log").read_text().startswith("run: ")  # not sent
    begin()
    tahoe("sync", str(run))
    again = {file.name: file.stat().st_mtime_ns for file in (run / "plots").iterdir()}
    assert again == drawn  # once
    marked = json.loads((run / "mlflow.json").read_text())
    sent = MlflowClient(tracking_uri=url).list_artifacts(marked["run_id"], "plots")
    assert {Path(one.path).name for one in sent} == set(drawn)
    assert all(one.file_size for one in sent)
