"""MLflow as Tahoe opens it: a server by URL, or an SQLite file and the artifacts beside it.

The rest of the package takes MLflow's names from here, so that the settings below come first.
Importing this module imports MLflow, which takes about two seconds.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from orchestrator.run.rundir import RunError, hold

# MLflow reads these when it is imported or when it sends. Its own retries block for minutes on a
# dead server and may repeat a request that made a run; the shipper tries again itself, knowing what
# it sends. https://mlflow.org/docs/latest/api_reference/python_api/mlflow.environment_variables.html
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "20"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # compute nodes are often offline

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from orchestrator.tracking.mlflow_store import database

__all__ = [
    "Dataset",
    "DatasetInput",
    "Experiment",
    "InputTag",
    "Metric",
    "MlflowClient",
    "MlflowException",
    "Param",
    "Run",
    "RunTag",
    "artifacts_dir",
    "experiment_id",
    "is_database",
    "open_client",
    "reading",
    "search_all",
    "sqlite_file",
    "to_stderr",
]

_PAGE = 1000  # runs that are asked for at a time
# What MLflow's pages call training, as against prompts and traces: they open on runs and charts.
_KIND = {"mlflow.experimentKind": "custom_model_development"}

for _chatterer in ("mlflow", "alembic", "sqlalchemy"):
    logging.getLogger(_chatterer).setLevel(logging.CRITICAL)


def to_stderr(message: str) -> None:
    """Print a line that is no result."""
    print(message, file=sys.stderr, flush=True)


def is_database(tracking_uri: str) -> bool:
    """Whether a URI is that of a database; a server minds its own."""
    return tracking_uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the file of a `sqlite:///` URI, None for a server."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0]))


def artifacts_dir(file: Path) -> Path:
    """Return where the artifacts of an SQLite store lie, whatever directory a verb is run in."""
    return file.resolve().parent / "mlartifacts"


def reading(tracking_uri: str) -> MlflowClient:
    """Open a store to look at it: nothing is made there and nothing upgraded.

    Raises:
        RunError: it is not there, or of another MLflow.
        MlflowException, OSError: it cannot be reached or read.
    """
    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        raise RunError(
            f"no tracking store at {file.absolute()}: no run has been tracked there. Run `tahoe "
            "train` first, or name another store with `--uri` or `--from-mlflow`."
        )
    if is_database(tracking_uri):
        database.check(tracking_uri)
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def open_client(
    tracking_uri: str, say: Callable[[str], None] = to_stderr
) -> Iterator[MlflowClient]:
    """Open a store; one process at a time makes the tables, experiments and runs of an SQLite file.

    Args:
        say: is told if the tables had to be upgraded, of which a copy is kept.

    Raises:
        RunError: it is of a newer MLflow, or for somebody else to upgrade.
        MlflowException, OSError: the store cannot be reached or written.
    """
    file = sqlite_file(tracking_uri)
    if file is None:
        if is_database(tracking_uri):
            database.prepare(tracking_uri, None, say)
        yield MlflowClient(tracking_uri=tracking_uri)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("a") as lock:
        hold(lock, wait=True, instead="another store: tracking.uri=sqlite:///FILE")
        database.prepare(tracking_uri, file, say)
        yield MlflowClient(tracking_uri=tracking_uri)


def search_all(client: MlflowClient, experiments: list[str], wanted: str) -> Iterator[Run]:
    """Yield all runs that pass a filter of MLflow's, which gives a page at a time."""
    token = None
    while True:
        page = client.search_runs(experiments, wanted, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """Return the id of an experiment, which is created if it is not there.

    Raises:
        RunError: it has been deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return _create_experiment(client, tracking_uri, name)
    if found.lifecycle_stage != "active":
        raise RunError(
            f"the MLflow experiment {name!r} has been deleted. Restore it with `mlflow experiments "
            f"restore -x {found.experiment_id}`, or choose another: tracking.experiment=NAME"
        )
    return str(found.experiment_id)


def _create_experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    file = sqlite_file(tracking_uri)
    location = None if file is None else artifacts_dir(file).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=_KIND))
    except MlflowException as error:
        found = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return str(found.experiment_id)  # another run was first, on a server without our lock
