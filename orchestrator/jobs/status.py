"""How runs stand: from their directories, and from what Slurm knows of their jobs.

The directory tells what has happened, and is right for jobs that Slurm has forgotten; Slurm tells
what is going to happen. Neither asks MLflow.
"""

import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.json_output import strict_json
from orchestrator.metrics import RANKED_BY, column_header
from orchestrator.number_format import format_duration, format_metric, pluralize
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.records.record_index import load_records
from slurm import client
from slurm.errors import SlurmError

_UNBOUNDED = 10_000  # columns of text, where no terminal bounds them
_GAP, _LEAST_REASON = 2, 20  # between two columns of a table; what is shown of the last one
_LEFT = range(3)  # columns of text: run, status, job
_SHOWN = ("train/loss", *reversed(RANKED_BY))
_COLUMNS = (  # as those of reports.compare_table
    *("run\n\n", "status\n\n", "job\n\n", "attempts\n\n", "step\n\n"),
    *("speed\n(img/s)\n", "time\nleft\n(h:mm:ss)"),
    *(*map(column_header, _SHOWN), "why\n\n"),
)


@dataclass(frozen=True)
class RunStatus:
    """How one run stands; what is not known is None.

    Args:
        state: of the run: scheduled, pending, running, finished, stopped, never_restart, crashed.
        why: it waits, or how the last attempt ended.
        ends: of each attempt, why it ended, or that it runs.
        images_per_s: the median over the run, as `compare` has it.
        eta_s, checkpoint_age_s: in seconds from now.
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


def run_statuses(runs: Sequence[RunDir], *, passing_over: bool = False) -> list[RunStatus]:
    """Return how runs stand; Slurm is asked once for all of them.

    Raises:
        RunError: there is no run at one of the paths.
    """
    known_runs = load_records(runs, passing_over=passing_over)
    try:
        known = client.queued_jobs(job for one in known_runs for job in one.job_ids)
    except SlurmError as error:  # the directories still tell what has happened
        print(f"warning: of waiting and running jobs nothing is known: {error}", file=sys.stderr)
        return [_standing(one, None, "") for one in known_runs]
    alive = {j: job for j, job in known.items() if job.state not in client.ENDED}
    last = {
        one.path: one.job_ids[-1]
        for one in known_runs
        if one.job_ids and not {*one.job_ids} & {*alive}
    }
    ended = {j: known[j].state for j in last.values() if j in known}
    ended |= client.final_states(job for job in last.values() if job not in known)
    found = []
    for one in known_runs:
        job = next((alive[j] for j in reversed(one.job_ids) if j in alive), None)
        place = one.path
        gone = f"job {last[place]}: {ended.get(last[place], 'forgotten')}" if place in last else ""
        found.append(_standing(one, job, gone))
    return found


def never_begun(runs: Sequence[RunDir]) -> dict[RunDir, str]:
    """Return the runs whose jobs are gone before an attempt began, and what became of those."""
    submitted = [run for run in runs if run.jobs_file.exists() and not run.num_attempts]
    found = zip(submitted, run_statuses(submitted) if submitted else (), strict=True)
    return {run: one.why for run, one in found if one.state == "stopped"}


def statuses_from_mlflow(tracking_uri: str) -> list[RunStatus]:
    """Return how the runs of an MLflow store stood when it last heard of them.

    Raises:
        RunError: the store cannot be read.
    """
    from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow

    return [_standing(one, None, "") for one in records_from_mlflow(tracking_uri)]


def show_table(found: Iterable[RunStatus]) -> None:
    """Print a line for each run, in the look and the forms of `tahoe compare`."""
    rows = [
        (
            one.run,
            one.state,
            one.job_id or "-",
            str(one.num_attempts),
            _progress(one),
            format_metric("images_per_s", one.images_per_s),
            format_duration(one.eta_s),
            *(format_metric(name, one.metrics.get(name)) for name in _SHOWN),
            one.why,
        )
        for one in found
    ]
    heads = [*zip(*(header.split("\n") for header in _COLUMNS), strict=True)]
    room = _room_for_reason([*heads, *rows])
    widths = [max(map(len, cells)) for cells in zip(*heads, *rows, strict=True)]
    rule = "─" * (sum(widths[:-1]) + _GAP * len(widths[1:]) + min(widths[-1], room))
    lines = [_aligned(cells, widths, room) for cells in (*heads, *rows)]
    print("\n".join([*lines[: len(heads)], rule, *lines[len(heads) :]]))


def _aligned(cells: Sequence[str], widths: Sequence[int], room: int) -> str:
    """Return a line of the table; only the last cell, a reason, is ever cut."""
    *cells, why = cells
    aligned = (
        cell.ljust(width) if place in _LEFT else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=False))
    )
    reason = why if len(why) <= room else f"{why[: room - 1]}…"
    return (" " * _GAP).join((*aligned, reason)).rstrip()


def _room_for_reason(rows: Sequence[Sequence[str]]) -> int:
    """Return how many characters a terminal has for the last column, beside all others."""
    if not sys.stdout.isatty():
        return _UNBOUNDED
    widths = [max(map(len, cells)) for cells in list(zip(*rows, strict=True))[:-1]]
    taken = sum(width + _GAP for width in widths) + _GAP
    return max(_LEAST_REASON, shutil.get_terminal_size().columns - taken)


def print_details(one: RunStatus) -> None:
    """Print all that is known of a run, a line each."""
    console = Console(soft_wrap=True, highlight=False)
    lines = {
        "run": one.path,
        "state": f"{one.state}: {one.why}",
        "job": one.job_id,
        "nodes": one.nodes,
        "expected start": one.start if one.state == "pending" else None,
        "step": _progress(one),
        "images/s": format_metric("images_per_s", one.images_per_s),
        "time left": format_duration(one.eta_s),
        "last checkpoint": None
        if one.checkpoint_age_s is None
        else f"{format_duration(one.checkpoint_age_s)} ago",
        **{name: format_metric(name, value) for name, value in sorted(one.metrics.items())},
        **{f"attempt {number}": why for number, why in enumerate(one.ends, start=1)},
    }
    width = max(map(len, lines)) + _GAP
    for name, value in lines.items():
        if value is not None:
            console.print(Text(f"{name:{width}}{value}"))


def as_json(found: Sequence[RunStatus]) -> str:
    """Return the standings for programs."""
    return strict_json([asdict(one) for one in found])


def _standing(one: Record, job: client.QueuedJob | None, gone: str) -> RunStatus:
    """Return how a run stands.

    Args:
        job: that waits or runs.
        gone: what Slurm says of the last job, if there is none any more.
    """
    state, why = _combine_state(one, job, gone)
    rate, eta_s = one.metrics.get("perf/images_per_s", math.nan), None  # now: it may have moved
    is_known = rate > 0 and math.isfinite(rate)
    if state == "running" and is_known and one.last_step is not None and one.num_steps:
        eta_s = (one.num_steps - one.last_step) * one.config["recipe.global_batch_size"] / rate
    return RunStatus(
        run=one.id,
        path=one.path,
        state=state,
        why=why,
        job_id=job.job_id if job else None,
        nodes=one.nodes,
        start=job.start or None if job else None,
        num_attempts=one.num_attempts,
        ends=(*one.attempt_outcomes[:-1], "running")
        if state == "running" and one.attempt_outcomes
        else tuple(one.attempt_outcomes),
        step=one.last_step,
        num_steps=one.num_steps,
        images_per_s=one.images_per_s,
        eta_s=eta_s,
        checkpoint_age_s=_checkpoint_age_s(RunDir(Path(one.path))),
        metrics=one.metrics,
    )


def _combine_state(one: Record, job: client.QueuedJob | None, gone: str) -> tuple[str, str]:
    if job and job.state != "PENDING":
        left = f"{job.time_left} left" if job.time_left else "no time limit"
        return "running", f"{job.state.lower()} on {pluralize(job.num_nodes, 'node')}, {left}"
    if job:
        return "pending", job.reason or "in the queue"
    if one.status == "running":
        return "running", "on this machine, or on one that shares its locks"
    if one.status == "scheduled" and gone:
        return "stopped", f"ended before an attempt began ({gone})"
    if one.status == "crashed" and gone:
        return "crashed", f"{one.reason} ({gone})"
    return one.status, one.reason


def _checkpoint_age_s(run: RunDir) -> float | None:
    manifests = run.checkpoints_dir.glob("step-*/manifest.json")
    newest = max((path.stat().st_mtime for path in manifests), default=None)
    return None if newest is None else max(0.0, time.time() - newest)


def _progress(one: RunStatus) -> str:
    done = "-" if one.step is None else f"{one.step:,}"
    return f"{done}/{one.num_steps:,}" if one.num_steps else done
