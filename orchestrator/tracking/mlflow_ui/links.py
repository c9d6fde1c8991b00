"""Addresses inside MLflow's pages: the lineage, a sweep, a run and those it comes from."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.run.rundir import RunDir, RunError
from orchestrator.run.sweepdir import SweepDir, is_sweep
from orchestrator.tracking.mlflow_store.client import MlflowClient
from orchestrator.tracking.mlflow_store.sweep_run import CHILD_TAG
from orchestrator.tracking.mlflow_ui.views import run_page, table_page
from orchestrator.tracking.records.record import Record, read_record
from orchestrator.tracking.records.record_index import all_records

LINEAGE = (
    "tags.`tahoe.year` LIKE '%'"  # whatever has a paper: runs of its system, and imported figures
)


def ui_links(
    server_url: str, paths: Iterable[Path], client: MlflowClient | None = None
) -> list[str]:
    """Return a line for each run and sweep: where it is shown, with what it comes from.

    Args:
        client: that keeps the views of tables; see views.table_page.

    Raises:
        RunError: there is none, or MLflow does not know it yet.
    """
    lines = []
    for path in paths:
        absolute = path.absolute()
        if is_sweep(absolute):
            lines.append(_of_sweep(server_url, SweepDir(absolute), client))
        else:
            lines += _of_run(server_url, RunDir(absolute), client)
    return lines


def _of_sweep(server_url: str, sweep: SweepDir, client: MlflowClient | None) -> str:
    mark = RunDir(sweep.path).read_json(sweep.mlflow_file)
    if mark is None:
        raise _unknown(sweep.path)
    wanted = f"tags.`{CHILD_TAG}` = '{mark['run_id']}'"
    return f"{table_page(client, server_url, mark['experiment_id'], wanted)}  {sweep.id}"


def _of_run(server_url: str, run: RunDir, client: MlflowClient | None) -> list[str]:
    record = read_record(run)
    mark = run.read_json(run.mlflow_file)
    if mark is None:
        raise _unknown(run.path)
    lines = [f"{run_page(server_url, mark)}  {run.id}"]
    family = [one.mlflow_id for one in _ancestors(record, all_records(run.path.parent))]
    known = [name for name in (mark["run_id"], *family) if name]
    if len(known) > 1:
        listed = ", ".join(f"'{name}'" for name in known)
        wanted = f"attributes.run_id IN ({listed})"
        page = table_page(client, server_url, mark["experiment_id"], wanted)
        lines.append(f"{page}  {run.id} and its ancestors")
    return lines


def _ancestors(record: Record, known: Sequence[Record]) -> list[Record]:
    """Return the runs whose weights a run began with, and theirs before them."""
    by_uid = {one.uid: one for one in known if one.uid}
    found: dict[str, Record] = {}
    while record.init_from and record.path not in found:
        parent = by_uid.get(str(record.init_from.get("uid")))
        if parent is None:
            break
        found[record.path], record = parent, parent
    return list(found.values())


def _unknown(path: Path) -> RunError:
    return RunError(
        f"MLflow does not know {path} yet, so that there is no page of it. `tahoe sync` sends it."
    )
