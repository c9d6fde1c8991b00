"""Links into MLflow's pages: the lineage, a sweep, a run and its ancestors."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from orchestrator.run.rundir import RunDir, RunError
from orchestrator.run.sweepdir import SweepDir, is_sweep
from orchestrator.tracking.mlflow_store.client import tag_equals
from orchestrator.tracking.mlflow_store.sweep_run import CHILD_TAG
from orchestrator.tracking.mlflow_ui.views import run_page, table_page
from orchestrator.tracking.records.record import Record, read_record
from orchestrator.tracking.records.record_index import all_records

LINEAGE = "tags.`tahoe.year` LIKE '%'"  # all that has a paper: runs of its system, and imports


def experiment_links(client: MlflowClient, server_url: str) -> list[str]:
    """Return two lines for each experiment: the link to its runs, and to those with a paper."""
    experiments = client.search_experiments()
    # 0 is MLflow's own.
    used = [one for one in experiments if one.experiment_id != "0"] or experiments
    lines = []
    for experiment in used:
        page = table_page(client, server_url, experiment.experiment_id)
        lineage = table_page(client, server_url, experiment.experiment_id, LINEAGE)
        lines += [f"{page}  {experiment.name}", f"{lineage}  {experiment.name}: the lineage"]
    return lines


def ui_links(
    server_url: str, paths: Iterable[Path], client: MlflowClient | None = None
) -> list[str]:
    """Return a line for each run and sweep: the link to its page, and to a run's ancestors.

    Args:
        client: the store that keeps the views of tables; see views.table_page.
    """
    lines = []
    for path in (path.absolute() for path in paths):
        if is_sweep(path):
            sweep = SweepDir(path)
            state = _mlflow_state(RunDir(path), sweep.mlflow_file)
            children = tag_equals(CHILD_TAG, state["run_id"])
            page = table_page(client, server_url, state["experiment_id"], children)
            lines.append(f"{page}  {sweep.id}")
        else:
            lines += _run_links(server_url, RunDir(path), client)
    return lines


def _run_links(server_url: str, run: RunDir, client: MlflowClient | None) -> list[str]:
    record = read_record(run)
    state = _mlflow_state(run, run.mlflow_file)
    lines = [f"{run_page(server_url, state)}  {run.id}"]
    ancestors = [one.mlflow_id for one in _ancestors(record, all_records(run.path.parent))]
    run_ids = [run_id for run_id in (state["run_id"], *ancestors) if run_id]
    if len(run_ids) > 1:
        quoted = ", ".join(f"'{run_id}'" for run_id in run_ids)
        family = f"attributes.run_id IN ({quoted})"
        page = table_page(client, server_url, state["experiment_id"], family)
        lines.append(f"{page}  {run.id} and its ancestors")
    return lines


def _ancestors(record: Record, records: Sequence[Record]) -> list[Record]:
    """Follow the initial weights of a run to the runs that they come from."""
    by_uid = {record.uid: record for record in records if record.uid}
    ancestors: dict[str, Record] = {}
    while record.init_from and record.path not in ancestors:
        parent = by_uid.get(str(record.init_from.get("uid")))
        if parent is None:
            break
        ancestors[record.path], record = parent, parent
    return list(ancestors.values())


def _mlflow_state(run: RunDir, file: Path) -> dict[str, Any]:
    state = run.read_json(file)
    if state is None:
        raise RunError(
            f"MLflow does not have {run.path} yet, so it has no page",
            value=str(run.path),
            hint="`tahoe sync` sends it.",
        )
    return state
