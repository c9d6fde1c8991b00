"""Whether a store can be reached, told without a trace in it."""

import pytest

from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.connectivity import check_connection
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def test_a_store_to_come_is_not_made(tmp_path):
    file = tmp_path / "new" / "mlflow.db"
    assert check_connection(f"sqlite:///{file}", "mine") == f"{file} will be made"
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_store_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        check_connection(f"sqlite:///{tmp_path}/file/mlflow.db", "mine")


def test_a_store_that_is_there(scene):
    sync(scene.run.path)
    assert check_connection(scene.uri, "tests").endswith("answers; experiment 'tests' is there")
    assert check_connection(scene.uri, "new").endswith("experiment 'new' will be made")
    assert check_connection(scene.uri, "new").endswith(
        "experiment 'new' will be made"
    )  # it was not


def test_a_server_that_is_away_is_told_without_its_password(free_port):
    with pytest.raises(RunError, match="does not answer") as caught:
        check_connection(f"http://me:secret@127.0.0.1:{free_port}", "mine")
    assert "secret" not in str(caught.value)


def test_what_is_no_store(tmp_path):
    (tmp_path / "bad.db").write_text("this is no database\n" * 100)
    with pytest.raises(RunError, match=r"bad\.db does not answer.*tracking=none"):
        check_connection(f"sqlite:///{tmp_path}/bad.db", "mine")
    with pytest.raises(RunError, match="cannot be written as an SQLite store: it is no file"):
        check_connection(f"sqlite:///{tmp_path}", "mine")
    with pytest.raises(RunError, match="does not answer") as caught:  # no driver is installed
        check_connection("postgresql://me:secret@127.0.0.1/runs", "mine")
    assert "secret" not in str(caught.value)
