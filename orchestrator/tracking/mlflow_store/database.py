"""Create the tables of an MLflow database, or upgrade them, never without a message and a copy.

MLflow upgrades an older database whenever it opens it. Users of the older MLflow can then no longer
read it, and there is no way back.
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

_MIGRATIONS: Any = utils  # untyped


class Tables(Enum):
    """The state of a database's tables, compared with the installed MLflow."""

    NONE = auto()
    CURRENT = auto()
    OLDER = auto()
    NEWER = auto()
    OTHER = auto()  # incomplete, or not MLflow's


def read_tables(database: str) -> tuple[Tables, str | None]:
    """Return the state and the revision of a database's tables; nothing is changed in it.

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


def check_tables(database: str) -> None:
    """Reject a database that cannot be used as it is."""
    state, _ = read_tables(database)
    if state in (Tables.OLDER, Tables.NEWER, Tables.OTHER):
        raise _unusable(state, redact_urls(database))


def prepare_tables(database: str, file: Path | None, notify: Callable[[str], None]) -> None:
    """Create the tables of a database; those of an SQLite file are upgraded, beside a copy.

    Args:
        file: the SQLite file, which the caller has locked.
        notify: the receiver of the message that the file was upgraded.
    """
    if file is None:
        check_tables(database)
        return
    state, revision = read_tables(database) if file.exists() else (Tables.NONE, None)
    if state is Tables.NONE:
        _create(database, file)
    elif state is Tables.OLDER:
        copy = _backup(file, str(revision))
        _upgrade(database, copy)
        notify(
            f"{file} was upgraded for MLflow {mlflow.__version__}: an older MLflow can no longer "
            f"read it. The original is kept as {copy}"
        )
    elif state is not Tables.CURRENT:
        raise _unusable(state, redact_urls(database))


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """Return the newest revision that the installed MLflow knows, and all."""
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    known = frozenset(script.revision for script in scripts.walk_revisions())
    return scripts.get_current_head(), known


def _create(database: str, file: Path) -> None:
    """Create the tables in a temporary file first: a kill leaves no half of them."""
    uri, question, options = database.partition("?")
    new = file.with_name(f"{file.name}.new")
    for leftover in file.parent.glob(f"{escape(new.name)}*"):  # of a killed process
        leftover.unlink()
    _migrate(f"{uri}.new{question}{options}")
    new.replace(file)


def _upgrade(database: str, copy: Path) -> None:
    try:
        _migrate(database)
    except Exception as error:  # alembic's, the database's, or a migration's own
        raise RunError(
            f"{redact_urls(database)} could not be upgraded for MLflow {mlflow.__version__}: "
            f"{one_line_error(error)}",
            value=str(copy),
            hint=f"The original is kept as {copy}: move it back, and upgrade it with the MLflow "
            "that created it; or, if no run is in it, move it away.",
        ) from error


def _migrate(database: str) -> None:
    """Do the work of `mlflow db upgrade`, and close the file."""
    engine = create_engine(database)
    try:
        if _MIGRATIONS._is_empty_database(engine):
            _MIGRATIONS._initialize_tables(engine)
        else:
            _MIGRATIONS._upgrade_db(engine)
    finally:
        engine.dispose()


def _backup(file: Path, revision: str) -> Path:
    """Copy an SQLite file that others may be writing; return the path of the copy."""
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
            f"{file} is of an older MLflow and could not be copied to {copy}, so it was not "
            f"upgraded: {error}",
            value=str(file),
            hint="Free some space, or copy and upgrade it yourself: `mlflow db upgrade URI`.",
        ) from error
    return copy


def _unusable(state: Tables, database: str) -> RunError:
    if state is Tables.OLDER:
        return RunError(
            f"{database} is of an older MLflow than {mlflow.__version__}: reading it would upgrade "
            "it, and the older MLflow could no longer read it",
            value=database,
            hint="`tahoe sync RUN` upgrades an SQLite file and keeps a copy. Or copy it, inform "
            f"its other users, and run `mlflow db upgrade {database}`.",
        )
    if state is Tables.NEWER:
        return RunError(
            f"{database} is of a newer MLflow than {mlflow.__version__}, which cannot read it",
            value=database,
            hint="Install the MLflow that created it, or name another store: tracking.uri=URI.",
        )
    return RunError(
        f"{database} has tables without a version of MLflow: their creation was interrupted, or "
        "they belong to another program",
        value=database,
        hint="If it holds nothing of yours, move it away; or name another store: tracking.uri=URI.",
    )
