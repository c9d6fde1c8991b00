"""The MLflow run of a sweep, under which MLflow's pages fold the runs of its points.

Its name is that of the sweep, a tag has the swept keys, and its status is running while any run is.
When the last run has ended, it gets the best result and the importance of the keys. MLflow draws
both: its page that compares runs has parallel coordinates.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunTag

from data_sharding.io.atomic_file import write_atomic
from orchestrator.number_format import format_metric, pluralize
from orchestrator.redact import mlflow_safe_name, redact_urls, truncate_json
from orchestrator.run.rundir import RunDir, hold
from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_store.client import tag_equals
from orchestrator.tracking.mlflow_store.run_metadata import MAX_TAG_CHARACTERS, user
from orchestrator.tracking.records.record_index import load_records
from orchestrator.tracking.reports.sweep_summary import SweepSummary, summarize

TAG = "tahoe.sweep"
CHILD_TAG = "mlflow.parentRunId"
_DESCRIPTION, _OWN_DESCRIPTION = "mlflow.note.content", "tahoe.description"
_MAX_DESCRIPTION = 500  # characters: one line, and within any server's limit


def get_or_create_sweep_run(client: MlflowClient, experiment_id: str, sweep: SweepDir) -> str:
    """Return the id of a sweep's MLflow run in an experiment; create it if it does not exist."""
    with sweep.lock_file.open("a") as lock:  # two runs of the sweep may start at the same time
        hold(lock, wait=True)
        runs = client.search_runs([experiment_id], tag_equals(TAG, sweep.uid), max_results=1)
        run = runs[0] if runs else client.create_run(experiment_id, tags=_tags(sweep))
        run_id = str(run.info.run_id)
        state = {"run_id": run_id, "experiment_id": experiment_id}
        write_atomic(sweep.mlflow_file, json.dumps(state))
    return run_id


def child_run_name(sweep: SweepDir, run: RunDir) -> str:
    """Name a run of a sweep by its values of the swept keys."""
    values = _values(sweep.points().get(run, ()), _swept_keys(sweep))
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items()) or run.id


def update_sweep_status(
    client: MlflowClient, experiment_id: str, parent_id: str, sweep: SweepDir
) -> None:
    """Set the status of a sweep's MLflow run by its children's; summarize it after the last.

    Points that are trained one after the other come to MLflow when they begin; after a stop, the
    others do by `tahoe sync`.
    """

    def has_child(status: str, comparison: str = "=") -> bool:
        child = f"{tag_equals(CHILD_TAG, parent_id)} and attributes.status {comparison} '{status}'"
        return bool(client.search_runs([experiment_id], child, max_results=1))

    others = has_child("FINISHED", "!=")
    if others and (has_child("RUNNING") or has_child("SCHEDULED")):
        client.update_run(parent_id, "RUNNING")
    else:
        ends = ("FAILED", "KILLED") if others else ()
        worst = next((status for status in ends if has_child(status)), "FINISHED")
        client.set_terminated(parent_id, worst)
        if all(run.mlflow_file.exists() for run in sweep.runs() if run.config_file.exists()):
            _log_summaries(client, parent_id, sweep)


def set_description(client: MlflowClient, run_id: str, text: str) -> None:
    """Set the description on MLflow's pages, unless a user has written another."""
    tags = client.get_run(run_id).data.tags
    if tags.get(_DESCRIPTION) == tags.get(_OWN_DESCRIPTION):
        text = truncate_json(redact_urls(text), _MAX_DESCRIPTION)
        both = [RunTag(key, text) for key in (_DESCRIPTION, _OWN_DESCRIPTION)]
        client.log_batch(run_id, tags=both, synchronous=True)  # one alone would seem the user's


def _log_summaries(client: MlflowClient, parent_id: str, sweep: SweepDir) -> None:
    swept = _swept_keys(sweep)
    points = {run: given for run, given in sweep.points().items() if run.config_file.exists()}
    values = [_values(overrides, swept) for overrides in points.values()]
    summaries = summarize(load_records([*points]), values) if swept else []
    if not summaries:
        return
    best, texts = [], []
    for summary in summaries:  # different images or protocols do not compare
        point = summary.points[0]
        place = f" on {summary.place}" if len(summaries) > 1 else ""
        setting = ", ".join(f"{key}={value}" for key, value in point.values.items())
        best.append(f"{point.run}: {summary.metric} {point.objective:.6g}, {setting}{place}")
        objective = format_metric(summary.metric, point.objective)
        num_points = pluralize(len(summary.points), "run")
        texts.append(f"{num_points}{place}: best {summary.metric} {objective}, by {setting}")
        _log_summary(client, parent_id, summary, f"{summary.place}/" if place else "")
    all_best = truncate_json(redact_urls("; ".join(best)), MAX_TAG_CHARACTERS)
    client.set_tag(parent_id, "tahoe.best", all_best)
    set_description(client, parent_id, f"sweep of {'; '.join(texts)}")


def _log_summary(client: MlflowClient, parent_id: str, summary: SweepSummary, prefix: str) -> None:
    metrics = {f"best/{prefix}{summary.metric}": summary.points[0].objective}
    metrics |= {f"importance/{prefix}{key}": x for key, x in summary.importance().items()}
    logged = client.get_run(parent_id).data.metrics
    for key, value in metrics.items():
        name = mlflow_safe_name(key)
        if logged.get(name) != value:
            client.log_metric(parent_id, name, value, step=len(summary.points))


def _values(overrides: Iterable[str], swept: Collection[str]) -> dict[str, str]:
    """Return a run's values of the swept keys; a dash for those without an override."""
    pairs = (override.partition("=") for override in overrides)
    values = {key.lstrip("+"): value for key, _, value in pairs}
    return {key: values.get(key, "-") for key in swept}


def _swept_keys(sweep: SweepDir) -> dict[str, list[str]]:
    """Return the keys with several values, and these."""
    values: dict[str, dict[str, Any]] = {}
    for overrides in sweep.overrides():
        for key, _, value in (override.partition("=") for override in overrides):
            values.setdefault(key.lstrip("+"), {})[value] = None
    return {key: list(distinct) for key, distinct in values.items() if len(distinct) > 1}


def _tags(sweep: SweepDir) -> dict[str, str]:
    swept = [f"{key}={','.join(values)}" for key, values in _swept_keys(sweep).items()]
    tags = {
        "mlflow.runName": sweep.id,
        "mlflow.user": user(),
        TAG: sweep.uid,
        "tahoe.swept_keys": "; ".join(swept),
        "tahoe.sweep_dir": str(sweep.path),
    }
    return {key: truncate_json(redact_urls(tag), MAX_TAG_CHARACTERS) for key, tag in tags.items()}
