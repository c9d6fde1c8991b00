"""Whether an MLflow store can be reached, without making anything in it."""

import os
from pathlib import Path

from data_sharding.io import filesystem
from orchestrator.redact import one_line_error, redact_urls
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import MlflowClient, is_database, sqlite_file
from orchestrator.tracking.mlflow_store.database import Tables, check, tables_of

_MADE_LATER = {  # by the first run that is sent there
    Tables.NONE: "will have its tables made",
    Tables.OLDER: "is of an older MLflow: it will be upgraded, and a copy of it kept beside it",
}


def check_connection(tracking_uri: str, experiment: str) -> str:
    """Return what is found at a tracking URI.

    Raises:
        RunError: nothing answers there, or it cannot be written.
    """
    file = sqlite_file(tracking_uri)
    if file is not None:
        _check_writable(file)
        if not _is_there(file):
            return f"{file} will be made"
    where = redact_urls(tracking_uri)
    try:
        state = tables_of(tracking_uri)[0] if is_database(tracking_uri) else Tables.CURRENT
        if file is not None and state in _MADE_LATER:
            return f"{file} {_MADE_LATER[state]}"
        if state is not Tables.CURRENT:
            check(tracking_uri)
        found = MlflowClient(tracking_uri=tracking_uri).get_experiment_by_name(experiment)
    except RunError:
        raise
    except Exception as error:  # MLflow's own, its database's, or a driver's that is not there
        raise RunError(
            f"{where} does not answer: {one_line_error(error)}. Runs would be trained and not "
            "shown until `tahoe sync`. Check tracking.uri, the server, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; or take tracking=none."
        ) from None
    if found is None:
        return f"{where} answers; experiment {experiment!r} will be made"
    if found.lifecycle_stage != "active":
        raise RunError(
            f"the experiment {experiment!r} at {where} has been deleted. Restore it with `mlflow "
            f"experiments restore -x {found.experiment_id}`, or choose another: "
            "tracking.experiment=NAME"
        )
    return f"{where} answers; experiment {experiment!r} is there"


def _is_there(file: Path) -> bool:
    return filesystem.nearest_existing(file) == file


def _check_writable(file: Path) -> None:
    """Raise RunError unless an SQLite file can be written, or made.

    SQLite writes a journal beside it. https://www.sqlite.org/lockingv3.html, section 4
    """
    directory = filesystem.nearest_existing(file.parent)
    well = directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)
    if _is_there(file):
        well = well and file.is_file() and os.access(file, os.R_OK | os.W_OK)
    if not well:
        raise RunError(
            f"{file} cannot be written as an SQLite store: it is no file, or it or {directory} is "
            "read-only to you. Runs would be trained and not shown. Choose another place: "
            "tracking.uri=sqlite:////DIRECTORY/mlflow.db"
        )
