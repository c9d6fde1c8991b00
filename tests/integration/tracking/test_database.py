"""Tables are made whole or not at all, and those of another MLflow are not touched by a look."""

import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine
from tracked_run import CreateTrackedRun, Eventually, StartProcess

from orchestrator.cli.main import main
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import MlflowClient, open_client
from orchestrator.tracking.mlflow_store.connectivity import check_connection
from orchestrator.tracking.mlflow_store.database import Tables, _revisions, read_tables
from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow
from orchestrator.tracking.mlflow_ui.serve import serve_ui
from orchestrator.tracking.shipping.shipper import sync

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
DEADLINE_S = 60
OLD = "bd07f7e963c5"  # of MLflow 2.1


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store as MLflow 2.1 has made it; making its tables takes seconds."""
    file = tmp_path_factory.mktemp("old") / "mlflow.db"
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = _get_alembic_config(f"sqlite:///{file}")
        config.attributes["connection"] = connection
        command.upgrade(config, OLD)
    engine.dispose()
    return file


@pytest.fixture
def old(template, tmp_path):
    file = tmp_path / "my store" / "mlflow.db"
    file.parent.mkdir()
    file.write_bytes(template.read_bytes())
    return file


def revision(file):
    with closing(sqlite3.connect(file)) as database:
        ((found,),) = database.execute("SELECT version_num FROM alembic_version")
    return found


def looks(uri, tmp_path):
    yield lambda: records_from_mlflow(uri)
    yield lambda: serve_ui(uri, 5999)
    yield lambda: main(["list", "--from-mlflow", uri])
    yield lambda: main(["compare", "--from-mlflow", uri])


def test_reading_leaves_an_older_store_unchanged(
    old, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, uri = old.read_bytes(), f"sqlite:///{old}"
    assert read_tables(uri) == (Tables.OLDER, OLD)
    assert "older MLflow" in check_connection(uri, "tests")
    for look in looks(uri, tmp_path):
        try:
            assert look() == 1
            message = capsys.readouterr().err
        except RunError as error:
            message = str(error)
        assert "mlflow db upgrade" in message
    assert old.read_bytes() == before
    assert {file.name for file in old.parent.iterdir()} == {"mlflow.db"}


def test_writing_upgrades_beside_a_copy_with_a_message(
    old, create_tracked_run: CreateTrackedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = create_tracked_run(uri=f"sqlite:///{old}")
    tracked.log(1, {"a": 1.0})
    before = old.read_bytes()
    sync(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()
    copy = old.with_name(f"mlflow.db.before-upgrade-{OLD}")
    said = capsys.readouterr().err.splitlines()
    assert [str(copy) in line for line in said] == [True]
    assert revision(copy) == OLD
    assert revision(old) == _revisions()[0]
    with closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    sync(tracked.run.path)  # once
    assert capsys.readouterr().err == ""
    assert len([*old.parent.glob("*before-upgrade*")]) == 1
    old.write_bytes(before)  # a colleague went back: the older copy is not written over
    sync(tracked.run.path)
    assert len([*old.parent.glob("*before-upgrade*")]) == 2


@pytest.mark.slow
def test_the_shipper_prints_the_upgrade_to_the_terminal(
    old, create_tracked_run: CreateTrackedRun, ship: StartProcess
) -> None:
    tracked = create_tracked_run(uri=f"sqlite:///{old}")
    tracked.run.begin_attempt()
    tracked.write_outcome("finished")
    process = ship(tracked)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert [f"before-upgrade-{OLD}" in line for line in err.splitlines()] == [True]


def test_a_newer_store_is_rejected(
    store: str, create_tracked_run: CreateTrackedRun, tmp_path: Path
) -> None:
    file = Path(store.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    before = file.read_bytes()
    tracked = create_tracked_run(uri=store)
    for look in (
        lambda: records_from_mlflow(store),
        lambda: check_connection(store, "tests"),
        lambda: sync(tracked.run.path),
        lambda: serve_ui(store, 5999),
    ):
        with pytest.raises(RunError, match="newer MLflow"):
            look()
    assert file.read_bytes() == before


def test_read_tables_something_else_are_left_alone(
    create_tracked_run: CreateTrackedRun, tmp_path: Path
) -> None:
    file = tmp_path / "notes.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE notes (text)")
        database.commit()
    before = file.read_bytes()
    tracked = create_tracked_run(uri=f"sqlite:///{file}")
    with pytest.raises(RunError) as error:
        sync(tracked.run.path)
    assert error.value.value == tracked.uri
    assert file.read_bytes() == before


def test_an_empty_file_is_filled(create_tracked_run: CreateTrackedRun, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    tracked = create_tracked_run(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracked.log(1, {"a": 1.0})
    sync(tracked.run.path)
    assert tracked.mlflow_points() == tracked.logged_points()


@pytest.mark.parametrize("num_bytes", [1, pytest.param(500_000, marks=pytest.mark.slow)])
def test_a_kill_while_the_tables_are_made_leaves_none(
    start: StartProcess, tmp_path: Path, eventually: Eventually, num_bytes
) -> None:
    place, uri = tmp_path / "store", f"sqlite:///{tmp_path}/store/mlflow.db"
    client = "orchestrator.tracking.mlflow_store.client"
    code = f"from {client} import open_client\nwith open_client({uri!r}): input()"
    process = start("-c", code)

    def is_begun():
        sizes = [file.stat().st_size for file in place.glob("mlflow.db*") if file.exists()]
        return sum(sizes) >= num_bytes

    eventually(is_begun)
    process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)
    with open_client(uri) as client:
        assert client.search_experiments()
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name("Default")
    assert {file.name for file in place.iterdir()} == {"mlflow.db", "mlflow.db.lock"}
