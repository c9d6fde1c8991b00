"""The tables of an MLflow database: made whole, and never upgraded without a word and a copy.

MLflow upgrades an older database as it opens it, whatever it is opened for. Those who still use the
older MLflow cannot read it then, and there is no way back.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from enum import Enum, auto
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import mlflow
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.redact import one_line_error, redact_urls
from orchestrator.run.rundir import RunError

_MIGRATIONS: Any = utils  # has no types


class Tables(Enum):
    """What the tables of a database are to the MLflow that is installed."""

    NONE = auto()
    CURRENT = auto()
    OLDER = auto()
    NEWER = auto()
    OTHER = auto()  # half made, or not MLflow's


def tables_of(database: str) -> tuple[Tables, str | None]:
    """Return what the tables of a database are, and their revision; nothing is changed there.

    Raises:
        MlflowException: it cannot be read.
    """
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            names = inspect(connection).get_table_names()
            revision = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        raise MlflowException(f"the database cannot be read: {one_line_error(error)}") from error
    finally:
        engine.dispose()
    head, known = _revisions()
    if revision is None:
        return (Tables.OTHER if names else Tables.NONE), None
    if revision == head:
        return Tables.CURRENT, revision
    return (Tables.OLDER if revision in known else Tables.NEWER), revision


def check(database: str) -> None:
    """Refuse a database that cannot be read as it is.

    Raises:
        RunError: it is of an older MLflow, of a newer one, or not whole.
    """
    found, _ = tables_of(database)
    if found is Tables.OLDER:
        raise RunError(f"{_is_older(database)} {_how_to_upgrade(database)}")
    if found in (Tables.NEWER, Tables.OTHER):
        raise _unusable(found, database)


def prepare(database: str, file: Path | None, say: Callable[[str], None]) -> None:
    """Make a database ready to be written: its tables are made, or upgraded beside a copy.

    Args:
        file: of an SQLite database, which nobody else makes or upgrades at the same time.
        say: is told that it was upgraded.

    Raises:
        RunError: it cannot be used, or is somebody else's to upgrade.
        MlflowException, OSError: it cannot be reached or written.
    """
    if file is not None and not file.exists():
        _make(database, file)
        return
    found, revision = tables_of(database)
    if found in (Tables.NEWER, Tables.OTHER):
        raise _unusable(found, database)
    if file is None:
        check(database)
    elif found is Tables.NONE:
        _make(database, file)
    elif found is Tables.OLDER:
        copy = _copied(file, str(revision))
        _upgrade(database, copy)
        say(
            f"{file} was of an older MLflow and has been upgraded for {mlflow.__version__}: the "
            f"older one cannot read it any more. As it was, it is kept as {copy}"
        )


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """Return the newest revision that the installed MLflow knows, and all."""
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    known = frozenset(script.revision for script in scripts.walk_revisions())
    return scripts.get_current_head(), known


def _make(database: str, file: Path) -> None:
    """Make the tables in a file of another name first: a kill leaves no half of them."""
    address, question, options = database.partition("?")
    new = file.with_name(f"{file.name}.new")
    for rest in file.parent.glob(f"{escape(new.name)}*"):  # of one that was killed
        rest.unlink()
    _migrate(f"{address}.new{question}{options}")
    new.replace(file)


def _upgrade(database: str, copy: Path) -> None:
    try:
        _migrate(database)
    except Exception as error:  # alembic's, the database's, or a migration's own
        raise RunError(
            f"{redact_urls(database)} could not be upgraded for MLflow {mlflow.__version__}: "
            f"{one_line_error(error)}. As it was, it is kept as {copy}: move that back, and "
            "upgrade it with the MLflow that made it; or, if no run is in it, move it away."
        ) from error


def _migrate(database: str) -> None:
    """Do what `mlflow db upgrade` does, and close the file."""
    engine = create_engine(database)
    try:
        if _MIGRATIONS._is_empty_database(engine):
            _MIGRATIONS._initialize_tables(engine)
        else:
            _MIGRATIONS._upgrade_db(engine)
    finally:
        engine.dispose()


def _copied(file: Path, revision: str) -> Path:
    """Copy an SQLite file that others may be writing; return where to."""
    copy, number = file.with_name(f"{file.name}.before-upgrade-{revision}"), 1
    while copy.exists():
        number += 1
        copy = file.with_name(f"{file.name}.before-upgrade-{revision}.{number}")
    unfinished = copy.with_name(f"{copy.name}.tmp")
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(unfinished)) as kept:
            source.backup(kept)
        unfinished.replace(copy)
    except (sqlite3.Error, OSError) as error:
        raise RunError(
            f"{file} is of an older MLflow and could not be copied to {copy}: {error}. It was not "
            "upgraded. Make room, or copy and upgrade it yourself: `mlflow db upgrade URI`."
        ) from error
    return copy


def _is_older(database: str) -> str:
    return f"{redact_urls(database)} is of an older MLflow than {mlflow.__version__}."


def _how_to_upgrade(database: str) -> str:
    return (
        "To look at it would upgrade it, and an older MLflow could not read it any more. `tahoe "
        "sync RUN` upgrades an SQLite file and keeps a copy of it; or copy it, tell who else uses "
        f"it, and run `mlflow db upgrade {redact_urls(database)}`."
    )


def _unusable(found: Tables, database: str) -> RunError:
    shown = redact_urls(database)
    if found is Tables.NEWER:
        return RunError(
            f"{shown} is of a newer MLflow than {mlflow.__version__}, which cannot read it. "
            "Nothing was changed there. Install the MLflow that made it, or name another store: "
            "tracking.uri=URI"
        )
    return RunError(
        f"{shown} has tables and does not say of which MLflow: whoever made them was killed, or "
        "they are something else. Nothing was changed there. If nothing of yours is in it, move it "
        "away; or name another store: tracking.uri=URI"
    )
