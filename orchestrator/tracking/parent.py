"""The MLflow run of a sweep, under which MLflow's pages fold the runs of its points.

It has no figures of its own: its name says which sweep it is, its tags what is varied, and its
status whether anything still goes on.
"""

import fcntl
import json
from typing import Any

from orchestrator.rundir import write_atomic
from orchestrator.sweepdir import SweepDir
from orchestrator.tracking.facts import MAX_TAG_CHARACTERS, user
from orchestrator.tracking.outgoing import as_text, without_secrets
from orchestrator.tracking.store import MlflowClient

TAG = "tahoe.sweep"
CHILD_TAG = "mlflow.parentRunId"


def parent_of(client: MlflowClient, experiment_id: str, sweep: SweepDir) -> str:
    """Return the id of a sweep's MLflow run in an experiment, which is made if there is none.

    Raises:
        MlflowException, OSError: the store cannot be reached or written.
    """
    with sweep.lock_file.open("a") as lock:  # two runs of the sweep may begin at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{sweep.id}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
        else:
            run_id = str(client.create_run(experiment_id, tags=_tags(sweep)).info.run_id)
        mark = {"run_id": run_id, "experiment_id": experiment_id}
        write_atomic(sweep.mlflow_file, json.dumps(mark))
    return run_id


def show_parent(client: MlflowClient, experiment_id: str, parent_id: str) -> None:
    """Set the status of a sweep's MLflow run by those of its children."""

    def any_is(status: str) -> bool:
        wanted = f"tags.`{CHILD_TAG}` = '{parent_id}' and attributes.status = '{status}'"
        return bool(client.search_runs([experiment_id], wanted, max_results=1))

    if any_is("RUNNING") or any_is("SCHEDULED"):
        client.update_run(parent_id, "RUNNING")
    else:
        worst = next((status for status in ("FAILED", "KILLED") if any_is(status)), "FINISHED")
        client.set_terminated(parent_id, worst)


def _tags(sweep: SweepDir) -> dict[str, str]:
    values: dict[str, dict[str, Any]] = {}
    for overrides in sweep.overrides():
        for key, _, value in (override.partition("=") for override in overrides):
            values.setdefault(key, {})[value] = None
    varied = [f"{key}={','.join(given)}" for key, given in values.items() if len(given) > 1]
    tags = {
        "mlflow.runName": sweep.id,
        "mlflow.user": user(),
        TAG: sweep.id,
        "tahoe.varied": "; ".join(varied),
        "tahoe.sweep_dir": str(sweep.path),
    }
    return {key: as_text(without_secrets(tag), MAX_TAG_CHARACTERS) for key, tag in tags.items()}
