"""The status of runs: their directories hold the past, Slurm knows what comes.

A directory is right also for jobs that Slurm has forgotten. MLflow is not needed.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.text import Text

from orchestrator.console import make_console, make_table, print_table, strict_json
from orchestrator.metrics import column_header, main_metrics
from orchestrator.number_format import format_duration, format_metric, pluralize
from orchestrator.run.node_times import SlowNode, slow_nodes
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.records.record_index import load_records
from slurm import client
from slurm.errors import SlurmError

_LOSSES = {"train/loss": "train\nloss", "val/loss": "val\nloss"}
_COLUMNS = (
    *("run", "status", "job", "attempts", "step", "speed\n(img/s)", "time\nleft\n(h:mm:ss)"),
)
_NUM_TEXTS = 3  # columns that are not numbers
_MIN_WHY = 20  # characters of the reason on a narrow terminal


@dataclass(frozen=True)
class RunStatus:
    """The status of one run; None where a value is not known.

    Args:
        state: scheduled, pending, running, finished, stopped, failed_permanently or crashed.
        why: the reason for which it waits, or the end of the last attempt.
        ends: the end of each attempt, or "running".
        images_per_s: the median over the run, as in `tahoe compare`.
        eta_s, checkpoint_age_s: seconds from now.
        slow_nodes: the nodes that the others wait for, the slowest first.
    """

    run: str
    path: str
    state: str
    why: str
    job_id: str | None
    nodes: str | None
    start: str | None
    num_attempts: int
    ends: tuple[str, ...]
    step: int | None
    num_steps: int | None
    images_per_s: float | None
    eta_s: float | None
    checkpoint_age_s: float | None
    metrics: dict[str, float]
    slow_nodes: list[SlowNode]


def run_statuses(runs: Sequence[RunDir], *, skip_unreadable: bool = False) -> list[RunStatus]:
    """Return the status of each run, with one query of Slurm."""
    records = load_records(runs, skip_unreadable=skip_unreadable)
    try:
        jobs = client.queued_jobs(job for record in records for job in record.job_ids)
    except SlurmError as error:
        print(f"warning: the queue of jobs is unknown: {error}", file=sys.stderr)
        return [_status(record, None, "") for record in records]
    active = {
        record.path: next((jobs[j] for j in reversed(record.job_ids) if _is_queued(jobs, j)), None)
        for record in records
    }
    last = {r.path: r.job_ids[-1] for r in records if r.job_ids and not active[r.path]}
    ended = client.final_states(job for job in last.values() if job not in jobs)
    ended |= {job: jobs[job].state for job in last.values() if job in jobs}
    gone = {path: f"job {job}: {ended.get(job, 'forgotten')}" for path, job in last.items()}
    return [_status(r, active[r.path], gone.get(r.path, "")) for r in records]


def _is_queued(jobs: dict[str, client.QueuedJob], job_id: str) -> bool:
    return job_id in jobs and jobs[job_id].state not in client.ENDED


def never_begun(runs: Sequence[RunDir]) -> dict[RunDir, str]:
    """Return the runs whose jobs ended before an attempt began, with the ends of those jobs."""
    submitted = [run for run in runs if run.jobs_file.exists() and not run.num_attempts]
    statuses = zip(submitted, run_statuses(submitted) if submitted else (), strict=True)
    return {run: status.why for run, status in statuses if status.state == "stopped"}


def statuses_from_mlflow(tracking_uri: str) -> list[RunStatus]:
    """Return the status of the runs of an MLflow store, as they were last sent there."""
    from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow

    return [_status(record, None, "") for record in records_from_mlflow(tracking_uri)]


def print_statuses(statuses: Sequence[RunStatus]) -> None:
    """Print a row for each run; on a narrow terminal only the last column, the reason, is cut."""
    results = main_metrics({name for status in statuses for name in status.metrics})
    rows = [
        (
            *(status.run, status.state, status.job_id or "-"),
            *(str(status.num_attempts), _progress(status)),
            *(format_metric("images_per_s", status.images_per_s), format_duration(status.eta_s)),
            *(format_metric(name, status.metrics.get(name)) for name in (*_LOSSES, *results)),
        )
        for status in statuses
    ]
    headers = (*_COLUMNS, *_LOSSES.values(), *map(column_header, results))
    table = make_table(*headers, num_text=0, collapse_padding=True)
    for column in table.columns[:_NUM_TEXTS]:
        column.justify = "left"
    table.add_column("why", min_width=_MIN_WHY)
    for status, row in zip(statuses, rows, strict=True):
        table.add_row(*map(Text, row), Text(status.why, no_wrap=True, overflow="ellipsis"))
    print_table(table)


def print_details(status: RunStatus) -> None:
    """Print all that is known of a run, one line each."""
    age_s = status.checkpoint_age_s
    lines = {
        "run": status.path,
        "state": f"{status.state}: {status.why}",
        "job": status.job_id,
        "nodes": status.nodes,
        "expected start": status.start if status.state == "pending" else None,
        "step": _progress(status),
        "images/s": format_metric("images_per_s", status.images_per_s),
        "time left": format_duration(status.eta_s),
        "slow nodes": _slow_nodes_text(status),
        "last checkpoint": None if age_s is None else f"{format_duration(age_s)} ago",
        **{name: format_metric(name, value) for name, value in sorted(status.metrics.items())},
        **{f"attempt {number}": why for number, why in enumerate(status.ends, start=1)},
    }
    console = make_console()
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        if value is not None:
            console.print(Text(f"{name:{width}}{value}"))


def _slow_nodes_text(status: RunStatus) -> str | None:
    """Describe the slow nodes, and how a job leaves them out."""
    if not status.slow_nodes:
        return None
    text, run = "; ".join(map(str, status.slow_nodes)), RunDir(Path(status.path))
    if not run.jobs_file.exists():
        return text
    excluded = [run.read_config()["slurm"]["exclude"], *(n.node for n in status.slow_nodes)]
    return f"{text}; leave out: slurm.exclude={','.join(filter(None, excluded))}"


def as_json(statuses: Sequence[RunStatus]) -> str:
    """Format the statuses for programs."""
    return strict_json([asdict(status) for status in statuses])


def _status(record: Record, job: client.QueuedJob | None, gone: str) -> RunStatus:
    """Combine the record of a run with Slurm's.

    Args:
        job: the pending or running job.
        gone: without one, the last job and its end.
    """
    state, why = _combine_state(record, job, gone)
    rate, eta_s = record.metrics.get("perf/images_per_s", math.nan), None  # the current rate
    ends = tuple(record.attempt_outcomes)
    if state == "running":
        ends = (*ends[:-1], "running") if ends else ()
        if 0 < rate < math.inf and record.last_step is not None and record.num_steps:
            batch_size = record.config["recipe.global_batch_size"]
            eta_s = (record.num_steps - record.last_step) * batch_size / rate
    return RunStatus(
        run=record.id,
        path=record.path,
        state=state,
        why=why,
        job_id=job.job_id if job else None,
        nodes=record.nodes,
        start=job.start or None if job else None,
        num_attempts=record.num_attempts,
        ends=ends,
        step=record.last_step,
        num_steps=record.num_steps,
        images_per_s=record.images_per_s,
        eta_s=eta_s,
        checkpoint_age_s=_checkpoint_age_s(RunDir(Path(record.path))),
        metrics=record.metrics,
        slow_nodes=slow_nodes(RunDir(Path(record.path))),
    )


def _combine_state(record: Record, job: client.QueuedJob | None, gone: str) -> tuple[str, str]:
    """Return the state of a run, and the reason."""
    if job and job.state != "PENDING":
        left = f"{job.time_left} left" if job.time_left else "no time limit"
        return "running", f"{job.state.lower()} on {pluralize(job.num_nodes, 'node')}, {left}"
    if job:
        return "pending", job.reason or "in the queue"
    if record.status == "running":
        return "running", "on this machine, or on one that shares its locks"
    if record.status == "scheduled" and gone:
        return "stopped", f"ended before an attempt began ({gone})"
    if record.status == "crashed" and gone:
        return "crashed", f"{record.reason} ({gone})"
    return record.status, record.reason


def _checkpoint_age_s(run: RunDir) -> float | None:
    manifests = run.checkpoints_dir.glob("step-*/manifest.json")
    newest = max((path.stat().st_mtime for path in manifests), default=None)
    return None if newest is None else max(0.0, time.time() - newest)


def _progress(status: RunStatus) -> str:
    done = "-" if status.step is None else f"{status.step:,}"
    return f"{done}/{status.num_steps:,}" if status.num_steps else done
