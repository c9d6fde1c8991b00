"""Pages of MLflow: a run's own, and tables of runs with the columns one compares them by.

MLflow keeps a view that somebody shares as a tag of the experiment, and opens it by the tag's name:
columns, order, filter and charts. What a link's own parameters can say is the filter alone.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestrator.metrics import RANKED_BY
from orchestrator.redact import redact_urls

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_store.client import MlflowClient

TRAINING = "workflowType=machine_learning"  # MLflow's pages open on prompts and traces without it
_TAG = "mlflow.sharedViewState."
_MAX_TAG_CHARACTERS = 5000  # of an experiment: mlflow/utils/validation.py
_COLUMNS = (  # and their widths; the run's name and its age are always first
    *((f"metrics.`{name}`", 100) for name in (*RANKED_BY, "train/loss")),
    ("tags.`tahoe.model`", 140),
    ("tags.`tahoe.data`", 100),
    ("attributes.`Description`", 420),
)
_SECTIONS = ("val", "train", "perf", "model")  # of charts; MLflow's own order is the alphabet's


def run_page(server_url: str, mark: Mapping[str, Any]) -> str:
    """Return the page of a run.

    Args:
        mark: what the run directory notes of its MLflow run: RunDir.mlflow_file.
    """
    place = f"#/experiments/{mark['experiment_id']}/runs/{mark['run_id']}"
    return f"{redact_urls(server_url).rstrip('/')}/{place}?{TRAINING}"


def table_page(
    client: "MlflowClient | None", server_url: str, experiment_id: str, wanted: str = ""
) -> str:
    """Return the page of an experiment's runs, best first, with the columns one compares by.

    Args:
        client: that keeps the view; without one, or if the store does not take it, the page has
            MLflow's own columns.
        wanted: a filter of MLflow's.
    """
    page = f"{server_url}/#/experiments/{experiment_id}/runs?{TRAINING}"
    key = _kept(client, experiment_id, wanted) if client else None
    if key:
        return f"{page}&viewStateShareKey={key}"
    return f"{page}&searchFilter={quote(wanted)}" if wanted else page


def _kept(client: "MlflowClient", experiment_id: str, wanted: str) -> str | None:
    """Return the name of a view that the experiment has, or is given now; None if it cannot."""
    from orchestrator.tracking.mlflow_store.client import MlflowException

    view = json.dumps(_view(wanted))
    key = "tahoe-" + hashlib.sha256(view.encode()).hexdigest()[:12]
    if len(view) > _MAX_TAG_CHARACTERS:
        return None
    try:
        if f"{_TAG}{key}" not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, f"{_TAG}{key}", view)
    except (MlflowException, OSError):  # one may read a store and not write to it
        return None
    return key


def _view(wanted: str) -> dict[str, Any]:
    """Return what MLflow's page keeps of itself; names it does not know it passes over."""
    columns = dict(_COLUMNS)
    return {
        "searchFilter": wanted,
        "orderByKey": next(iter(columns)),
        "orderByAsc": False,
        "selectedColumns": [*columns],
        "columnOrder": ["attributes.`Run Name`", "runDateAndNestInfo", *columns, "duration"],
        "columnWidths": columns,
        "compareRunCharts": [],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False}
            for name in _SECTIONS
        ],
        "isAccordionReordered": True,
    }
