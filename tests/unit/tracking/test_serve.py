"""MLflow's user interface: the command, and what can be wrong before it starts."""

import socket
import sys
from pathlib import Path

import pytest
from tracked_run import CreateTrackedRun

from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_ui.serve import command, serve_ui, tracking_uri_of
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def test_the_command_keeps_artifacts_beside_the_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/my store/mlflow.db"
    argv = command(uri, port=5001)
    assert argv[:6] == [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    place = (tmp_path / "my store" / "mlartifacts").as_uri()
    assert argv[6:] == [
        "--host", "127.0.0.1", "--port", "5001", "--workers", "1", "--artifacts-destination", place,
    ]  # fmt: skip


def test_on_all_interfaces_it_answers_to_its_names_only() -> None:
    allowed = command("postgresql://db/mlflow", host="0.0.0.0")[-1].split(",")
    assert {socket.gethostname(), f"{socket.gethostname()}:*", "localhost:*"} <= set(allowed)
    assert "*" not in allowed


def test_a_server_that_runs_elsewhere_is_only_named(capsys: pytest.CaptureFixture[str]) -> None:
    serve_ui("https://me:hunter2@mlflow.example.org")
    assert capsys.readouterr().out == (
        "https://mlflow.example.org/#/experiments?workflowType=machine_learning\n"
    )


def test_no_store_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError) as error:
        serve_ui("sqlite:///mlflow.db")
    assert "--uri" in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port(store: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError) as error:
            serve_ui(store, port)
    assert error.value.value == port
    assert f"--port {port + 1}" in error.value.hint


def test_no_such_port(store: str) -> None:
    with pytest.raises(RunError) as error:
        serve_ui(store, 99999)
    assert error.value.value == 99999


def test_what_is_no_store() -> None:
    with pytest.raises(RunError, match="unsupported URI"):
        serve_ui("foo://bar", 5977)


def test_the_store_is_that_of_the_runs(
    create_tracked_run: CreateTrackedRun, store: str, tmp_path: Path
) -> None:
    here, also, elsewhere = (
        create_tracked_run(name, uri=uri)
        for name, uri in (("a", store), ("b", store), ("c", f"sqlite:///{tmp_path}/other.db"))
    )
    assert (
        tracking_uri_of([]) == tracking_uri_of([here.run.path]) == "sqlite:///mlflow.db"
    )  # not sent yet
    for tracked in (here, also, elsewhere):
        sync(tracked.run.path)
    assert tracking_uri_of([here.run.path, also.run.path]) == store
    with pytest.raises(RunError) as error:
        tracking_uri_of([here.run.path, elsewhere.run.path])
    assert error.value.value == sorted([store, elsewhere.uri])
