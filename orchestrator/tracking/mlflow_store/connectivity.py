"""Check whether an MLflow store can be used, without creating anything in it."""

import os
from pathlib import Path

from mlflow import MlflowClient

from data_sharding.io.filesystem import nearest_existing
from orchestrator.redact import one_line_error, redact_urls
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import (
    check_experiment_active,
    is_database,
    sqlite_file,
)
from orchestrator.tracking.mlflow_store.database import Tables, check_tables, read_tables

_PENDING = {  # left to the first run that is sent there
    Tables.NONE: "will get its tables",
    Tables.OLDER: "is of an older MLflow: it will be upgraded, and a copy kept beside it",
}


def check_connection(tracking_uri: str, experiment: str) -> str:
    """Check a tracking URI, and describe the store in one line.

    Raises:
        RunError: it does not answer, or cannot be written.
    """
    file = sqlite_file(tracking_uri)
    if file is not None:
        _check_writable(file)
        if nearest_existing(file) != file:
            return f"{file} will be created"
    url = redact_urls(tracking_uri)
    try:
        state = read_tables(tracking_uri)[0] if is_database(tracking_uri) else Tables.CURRENT
        if file is not None and state in _PENDING:
            return f"{file} {_PENDING[state]}"
        if state is not Tables.CURRENT:
            check_tables(tracking_uri)
        found = MlflowClient(tracking_uri=tracking_uri).get_experiment_by_name(experiment)
    except RunError:
        raise
    except Exception as error:  # MLflow's own, its database's, or that of a missing driver
        raise RunError(
            f"{url} does not answer: {one_line_error(error)}. Runs would be trained, but not shown "
            "until `tahoe sync`",
            value=url,
            hint="Check tracking.uri, the server, MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; or take tracking=none.",
        ) from None
    if found is None:
        return f"{url} answers; experiment {experiment!r} will be created"
    check_experiment_active(found, tracking_uri)
    return f"{url} answers; experiment {experiment!r} exists"


def _check_writable(file: Path) -> None:
    """Raise RunError unless an SQLite file can be written or created.

    SQLite writes a journal beside it. https://www.sqlite.org/lockingv3.html, section 4
    """
    directory = nearest_existing(file.parent)
    is_writable = directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)
    if nearest_existing(file) == file:
        is_writable = is_writable and file.is_file() and os.access(file, os.R_OK | os.W_OK)
    if not is_writable:
        raise RunError(
            f"{file} cannot be written as an SQLite store: it is not a file, or you may not write "
            f"it or {directory}. Runs would be trained, but not shown",
            value=str(file),
            hint="Choose another location: tracking.uri=sqlite:////DIRECTORY/mlflow.db.",
        )
