"""The MLflow run of a sweep, under which MLflow's pages fold the runs of its points.

Its name says which sweep it is, its tags what is varied, and its status whether anything still goes
on. When nothing does, it has the best result, and pictures of what mattered.
"""

import json
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.number_format import format_metric, pluralize
from orchestrator.redact import mlflow_safe_name, redact_urls, truncate_json
from orchestrator.run.rundir import RunDir, hold, write_atomic
from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_store.client import MlflowClient, RunTag
from orchestrator.tracking.mlflow_store.run_metadata import MAX_TAG_CHARACTERS, user

if TYPE_CHECKING:
    from orchestrator.tracking.reports.sweep_summary import Summary

TAG = "tahoe.sweep"
CHILD_TAG = "mlflow.parentRunId"
_DESCRIPTION, _OWN_DESCRIPTION = "mlflow.note.content", "tahoe.description"
_MAX_DESCRIPTION = 500  # characters: one line, and what any server takes


def get_or_create_sweep_run(client: MlflowClient, experiment_id: str, sweep: SweepDir) -> str:
    """Return the id of a sweep's MLflow run in an experiment, which is made if there is none.

    Raises:
        MlflowException, OSError: the store cannot be reached or written.
    """
    with sweep.lock_file.open("a") as lock:  # two runs of the sweep may begin at the same time
        hold(lock, wait=True)
        found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{sweep.uid}'", max_results=1)
        if found:
            run_id = str(found[0].info.run_id)
        else:
            run_id = str(client.create_run(experiment_id, tags=_tags(sweep)).info.run_id)
        mark = {"run_id": run_id, "experiment_id": experiment_id}
        write_atomic(sweep.mlflow_file, json.dumps(mark))
    return run_id


def child_run_name(sweep: SweepDir, run: RunDir) -> str:
    """Return what tells a run of a sweep from the others: its values of what is varied."""
    values = _values(sweep.points().get(run, ()), _swept_keys(sweep))
    own = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items()]
    return " ".join(own) or run.id


def update_sweep_status(
    client: MlflowClient, experiment_id: str, parent_id: str, sweep: SweepDir
) -> None:
    """Set the status of a sweep's MLflow run by those of its children.

    When the last has ended, it is also told what the sweep came to.
    """

    def any_is(status: str) -> bool:
        wanted = f"tags.`{CHILD_TAG}` = '{parent_id}' and attributes.status = '{status}'"
        return bool(client.search_runs([experiment_id], wanted, max_results=1))

    if any_is("RUNNING") or any_is("SCHEDULED"):
        client.update_run(parent_id, "RUNNING")
    else:
        worst = next((status for status in ("FAILED", "KILLED") if any_is(status)), "FINISHED")
        client.set_terminated(parent_id, worst)
        _show_summary(client, parent_id, sweep)


def tell_in_words(client: MlflowClient, run_id: str, text: str) -> None:
    """Set the description that MLflow's pages show, unless somebody has written another."""
    known = client.get_run(run_id).data.tags
    if known.get(_DESCRIPTION) == known.get(_OWN_DESCRIPTION):
        told = truncate_json(redact_urls(text), _MAX_DESCRIPTION)
        tags = [RunTag(key, told) for key in (_DESCRIPTION, _OWN_DESCRIPTION)]
        client.log_batch(run_id, tags=tags, synchronous=True)  # both, or it seems the user's


def _show_summary(client: MlflowClient, parent_id: str, sweep: SweepDir) -> None:
    from orchestrator.tracking.records.record_index import load_records
    from orchestrator.tracking.reports.sweep_summary import summarize

    varied = _swept_keys(sweep)
    there = {run: given for run, given in sweep.points().items() if run.config_file.exists()}
    values = [_values(given, varied) for given in there.values()]
    found = summarize(load_records([*there]), values) if varied else []
    if not found:
        return
    best, told = [], []
    for summary in found:  # figures of other images, or under another protocol, do not compare
        point, where = summary.points[0], f" on {summary.place}" if len(found) > 1 else ""
        said = ", ".join(f"{key}={value}" for key, value in point.values.items())
        best.append(f"{point.run}: {summary.figure} {point.worth:.6g}, {said}{where}")
        worth = format_metric(summary.figure, point.worth)
        num_points = pluralize(len(summary.points), "run")
        told.append(f"of {num_points}{where}: {summary.figure} {worth} at best, by {said}")
        _log_summary(client, parent_id, summary, f"{summary.place}/" if where else "")
    all_best = truncate_json(redact_urls("; ".join(best)), MAX_TAG_CHARACTERS)
    client.set_tag(parent_id, "tahoe.best", all_best)
    tell_in_words(client, parent_id, f"sweep {'; '.join(told)}")


def _log_summary(client: MlflowClient, parent_id: str, summary: "Summary", place: str) -> None:
    from orchestrator.tracking.reports.sweep_summary import draw_summary

    name, worth = mlflow_safe_name(f"best/{place}{summary.figure}"), summary.points[0].worth
    if client.get_run(parent_id).data.metrics.get(name) != worth:
        client.log_metric(parent_id, name, worth, step=len(summary.points))
    with tempfile.TemporaryDirectory() as directory:
        for file in draw_summary(summary, Path(directory)):
            client.log_artifact(parent_id, str(file), mlflow_safe_name(f"sweep/{place}"))


def _values(overrides: Iterable[str], varied: Collection[str]) -> dict[str, str]:
    """Return a run's values of what is varied; a dash where it was not said."""
    said = (override.partition("=") for override in overrides)
    own = {key.lstrip("+"): value for key, _, value in said}
    return {key: own.get(key, "-") for key in varied}


def _swept_keys(sweep: SweepDir) -> dict[str, list[str]]:
    """Return the keys of which the runs have several values, with those."""
    values: dict[str, dict[str, Any]] = {}
    for overrides in sweep.overrides():
        for key, _, value in (override.partition("=") for override in overrides):
            values.setdefault(key.lstrip("+"), {})[value] = None
    return {key: list(given) for key, given in values.items() if len(given) > 1}


def _tags(sweep: SweepDir) -> dict[str, str]:
    varied = [f"{key}={','.join(given)}" for key, given in _swept_keys(sweep).items()]
    tags = {
        "mlflow.runName": sweep.id,
        "mlflow.user": user(),
        TAG: sweep.uid,
        "tahoe.varied": "; ".join(varied),
        "tahoe.sweep_dir": str(sweep.path),
    }
    return {key: truncate_json(redact_urls(tag), MAX_TAG_CHARACTERS) for key, tag in tags.items()}
