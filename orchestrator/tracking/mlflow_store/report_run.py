"""The MLflow run that holds the report on a data set: one, whose files are replaced."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.tracking.mlflow_store.client import experiment_id, open_client
from orchestrator.tracking.mlflow_store.run_metadata import user

_TAG = "tahoe.report"


def send_report(files: Sequence[Path], data: str, tracking_uri: str, experiment: str) -> str:
    """Send the files of a report, and return the id of the run that has them.

    Raises:
        RunError: the experiment has been deleted.
        MlflowException, OSError: the store cannot be reached or written.
    """
    with open_client(tracking_uri) as client:
        place = experiment_id(client, tracking_uri, experiment)
        quote = '"' if "'" in data else "'"
        wanted = f"tags.`{_TAG}` = {quote}{data}{quote}"
        found = client.search_runs([place], wanted, max_results=1)
        tags = {"mlflow.runName": f"report on {data}", "mlflow.user": user(), _TAG: data}
        run = found[0] if found else client.create_run(place, tags=tags)
        run_id = str(run.info.run_id)
        for file in files:
            client.log_artifact(run_id, str(file), "report")
        client.set_terminated(run_id)
    return run_id
