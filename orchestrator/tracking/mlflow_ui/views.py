"""Addresses of MLflow's pages: that of a run, and tables of runs with columns to compare.

MLflow stores a shared view as a tag of the experiment, and opens it by the tag's name: columns,
order, filter and charts. The parameters of an address can only hold the filter.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestrator.metrics import RANKED_BY
from orchestrator.redact import redact_urls

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAINING = "workflowType=machine_learning"  # without it, MLflow's pages open on prompts and traces
_TAG = "mlflow.sharedViewState."
_MAX_TAG_CHARACTERS = 5000  # of an experiment: mlflow/utils/validation.py
_COLUMNS = (  # and their widths; the name and the age of the run are always first
    *((f"metrics.`{name}`", 100) for name in (*RANKED_BY, "train/loss")),
    ("tags.`tahoe.model`", 140),
    ("tags.`tahoe.data`", 100),
    ("attributes.`Description`", 420),
)
_SECTIONS = ("val", "train", "perf", "model")  # of charts; MLflow's own order is the alphabet's


def run_page(server_url: str, state: Mapping[str, Any]) -> str:
    """Return the address of a run.

    Args:
        state: the content of RunDir.mlflow_file.
    """
    path = f"#/experiments/{state['experiment_id']}/runs/{state['run_id']}"
    return f"{redact_urls(server_url).rstrip('/')}/{path}?{TRAINING}"


def table_page(
    client: "MlflowClient | None", server_url: str, experiment_id: str, search_filter: str = ""
) -> str:
    """Return the address of a table of an experiment's runs, best first, with columns to compare.

    Args:
        client: the store that keeps the view; without it, or if the store is read-only, the page
            has MLflow's default columns.
        search_filter: a filter in MLflow's syntax.
    """
    page = f"{server_url}/#/experiments/{experiment_id}/runs?{TRAINING}"
    key = _store_view(client, experiment_id, search_filter) if client else None
    if key:
        return f"{page}&viewStateShareKey={key}"
    return f"{page}&searchFilter={quote(search_filter)}" if search_filter else page


def _store_view(client: "MlflowClient", experiment_id: str, search_filter: str) -> str | None:
    """Store a view in the experiment, unless it is there; return its key, None if that fails."""
    from mlflow.exceptions import MlflowException

    view = json.dumps(_view(search_filter))
    key = "tahoe-" + hashlib.sha256(view.encode()).hexdigest()[:12]
    if len(view) > _MAX_TAG_CHARACTERS:
        return None
    try:
        if f"{_TAG}{key}" not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, f"{_TAG}{key}", view)
    except (MlflowException, OSError):  # a store may be read-only to this user
        return None
    return key


def _view(search_filter: str) -> dict[str, Any]:
    """Build the state of MLflow's page, which ignores names that it does not know."""
    columns = dict(_COLUMNS)
    return {
        "searchFilter": search_filter,
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
