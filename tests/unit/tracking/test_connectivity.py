"""A check of a store leaves no trace in it."""

from pathlib import Path

import pytest
from tracked_run import TrackedRun

from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.connectivity import check_connection
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def test_a_future_store_is_not_created(tmp_path: Path) -> None:
    file = tmp_path / "new" / "mlflow.db"
    assert check_connection(f"sqlite:///{file}", "mine") == f"{file} will be created"
    assert list(tmp_path.iterdir()) == []


def test_a_store_inside_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as error:
        check_connection(f"sqlite:///{tmp_path}/file/mlflow.db", "mine")
    assert error.value.value == f"{tmp_path}/file/mlflow.db"


def test_an_existing_store_is_described(tracked: TrackedRun) -> None:
    sync(tracked.run.path)
    assert check_connection(tracked.uri, "tests").endswith("answers; experiment 'tests' exists")
    for _ in range(2):  # the first check creates nothing
        assert check_connection(tracked.uri, "new").endswith("experiment 'new' will be created")


def test_the_error_for_a_server_that_is_down_has_no_password(free_port: int) -> None:
    with pytest.raises(RunError, match="does not answer") as caught:
        check_connection(f"http://me:secret@127.0.0.1:{free_port}", "mine")
    assert "secret" not in str(caught.value)


def test_uris_without_a_store_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_text("this is no database\n" * 100)
    for uri, value in (
        (f"sqlite:///{tmp_path}/bad.db", f"sqlite:///{tmp_path}/bad.db"),
        (f"sqlite:///{tmp_path}", str(tmp_path)),
        # Its driver is not installed.
        ("postgresql://me:secret@127.0.0.1/runs", "postgresql://127.0.0.1/runs"),
    ):
        with pytest.raises(RunError) as error:
            check_connection(uri, "mine")
        assert error.value.value == value
        assert "secret" not in str(error.value)
