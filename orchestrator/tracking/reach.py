"""Whether an MLflow store can be reached, without making anything in it."""

import os
from pathlib import Path

from data_sharding import files
from orchestrator.rundir import RunError
from orchestrator.tracking.outgoing import summary, without_secrets
from orchestrator.tracking.store import MlflowClient, MlflowException, sqlite_file


def reach(tracking_uri: str, experiment: str) -> str:
    """Return what is found at a tracking URI.

    Raises:
        RunError: nothing answers there, or it cannot be written.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        _check_writable(file.parent)
        return f"{file} will be made"
    where = without_secrets(tracking_uri)
    try:
        found = MlflowClient(tracking_uri=tracking_uri).get_experiment_by_name(experiment)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"{where} does not answer: {summary(error)}. Runs would be trained and not shown until "
            "`tahoe sync`. Check tracking.uri, the server, and MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; or take tracking=none."
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


def _check_writable(directory: Path) -> None:
    directory = files.existing(directory)
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise RunError(
            f"{directory} cannot be written, so no SQLite store can be made there. Choose another "
            "place: tracking.uri=sqlite:////DIRECTORY/mlflow.db"
        )
