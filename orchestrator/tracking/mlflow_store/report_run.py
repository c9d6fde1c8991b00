"""Send the report on a data set to MLflow: one run per data set, whose files are replaced."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.tracking.mlflow_store.client import experiment_id, open_client, tag_equals
from orchestrator.tracking.mlflow_store.run_metadata import user

_TAG = "tahoe.report"


def send_report(files: Sequence[Path], data: str, tracking_uri: str, experiment: str) -> str:
    """Send the files of a report, and return the id of its run."""
    with open_client(tracking_uri) as client:
        experiment = experiment_id(client, tracking_uri, experiment)
        runs = client.search_runs([experiment], tag_equals(_TAG, data), max_results=1)
        tags = {"mlflow.runName": f"report on {data}", "mlflow.user": user(), _TAG: data}
        run = runs[0] if runs else client.create_run(experiment, tags=tags)
        run_id = str(run.info.run_id)
        for file in files:
            client.log_artifact(run_id, str(file), "report")
        client.set_terminated(run_id)
    return run_id
