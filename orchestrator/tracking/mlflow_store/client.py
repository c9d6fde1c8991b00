"""Open MLflow stores: a server by URL, or an SQLite file and the artifacts beside it.

Importing this module imports MLflow, which takes about two seconds.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException as MlflowException  # noqa: PLC0414  (for the verbs)
from mlflow.store.db.db_types import DATABASE_ENGINES

from orchestrator.redact import redact_urls
from orchestrator.run.rundir import RunError, hold
from orchestrator.tracking.mlflow_store import database

_PAGE_SIZE = 1000  # runs per request
# MLflow's kind for training, as against prompts and traces: its pages open on runs and charts.
_EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}

for _library in ("mlflow", "alembic", "sqlalchemy"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


def print_to_stderr(message: str) -> None:
    """Print a line that is not a result."""
    print(message, file=sys.stderr, flush=True)


def is_database(tracking_uri: str) -> bool:
    """Check whether a URI is that of a database, not of a server, which maintains its own."""
    return tracking_uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def sqlite_file(tracking_uri: str) -> Path | None:
    """Return the file of a `sqlite:///` URI, None for a server."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(unquote(tracking_uri.removeprefix("sqlite:///").partition("?")[0]))


def artifacts_dir(file: Path) -> Path:
    """Return the artifact directory of an SQLite store, whatever the working directory is."""
    return file.resolve().parent / "mlartifacts"


def open_read_only(tracking_uri: str) -> MlflowClient:
    """Open a store without creating or upgrading anything in it."""
    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        raise RunError(
            f"no tracking store at {file.absolute()}: no run has been tracked there",
            value=str(file),
            hint="Run `tahoe train` first, or name another store with --uri or --from-mlflow.",
        )
    if is_database(tracking_uri):
        database.check_tables(tracking_uri)
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def open_client(
    tracking_uri: str, notify: Callable[[str], None] = print_to_stderr
) -> Iterator[MlflowClient]:
    """Open a store for writing; create its tables, or upgrade those of an SQLite file.

    A lock lets one process at a time create the tables, experiments and runs of an SQLite file.

    Args:
        notify: the receiver of the message that the tables were upgraded.
    """
    file = sqlite_file(tracking_uri)
    if file is None:
        if is_database(tracking_uri):
            database.prepare_tables(tracking_uri, None, notify)
        yield MlflowClient(tracking_uri=tracking_uri)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("a") as lock:
        hold(lock, wait=True, instead="another store: tracking.uri=sqlite:///FILE")
        database.prepare_tables(tracking_uri, file, notify)
        yield MlflowClient(tracking_uri=tracking_uri)


def tag_equals(key: str, value: str) -> str:
    """Build a search filter: a tag has a value."""
    quote = '"' if "'" in value else "'"
    return f"tags.`{key}` = {quote}{value}{quote}"


def search_all(client: MlflowClient, experiments: list[str], search_filter: str) -> Iterator[Run]:
    """Yield all runs that pass a filter, page after page."""
    token = None
    while True:
        page = client.search_runs(
            experiments, search_filter, max_results=_PAGE_SIZE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def experiment_id(client: MlflowClient, tracking_uri: str, name: str) -> str:
    """Return the id of an experiment; create it if it does not exist."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return _create_experiment(client, tracking_uri, name)
    check_experiment_active(experiment, tracking_uri)
    return str(experiment.experiment_id)


def check_experiment_active(experiment: Experiment, tracking_uri: str) -> None:
    """Raise RunError if an experiment has been deleted."""
    if experiment.lifecycle_stage != "active":
        raise RunError(
            f"the MLflow experiment {experiment.name!r} in {redact_urls(tracking_uri)} has been "
            "deleted",
            value=experiment.name,
            hint=f"Restore it with `mlflow experiments restore -x {experiment.experiment_id}`, or "
            "choose another: tracking.experiment=NAME.",
        )


def _create_experiment(client: MlflowClient, tracking_uri: str, name: str) -> str:
    file = sqlite_file(tracking_uri)
    location = None if file is None else artifacts_dir(file).as_uri()
    try:
        return str(client.create_experiment(name, location, tags=_EXPERIMENT_KIND))
    except MlflowException as error:
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)  # another run was first, on a server without our lock
