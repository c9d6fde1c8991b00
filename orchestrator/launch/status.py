"""How runs stand: from their directories, and from what Slurm knows of their jobs.

The directory tells what has happened, and is right for jobs that Slurm has forgotten; Slurm tells
what is going to happen. Neither asks MLflow.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.rundir import RunDir, read_json_lines
from orchestrator.tracking.outcome import attempts, outcome
from slurm import client

_TAIL_BYTES = 1 << 16
_UNBOUNDED = 10_000  # columns of text, where no terminal bounds them
_GAP, _LEAST_REASON = 3, 20  # between two columns of a table; what is shown of the last one
_SHOWN = ("train/loss", "val/top1")


@dataclass(frozen=True)
class Standing:
    """How one run stands; what is not known is None.

    Args:
        state: of the run: scheduled, pending, running, finished, stopped, never_restart, crashed.
        why: it waits, or how the last attempt ended.
        ends: for each attempt that has ended, why.
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


def standings(runs: Sequence[RunDir]) -> list[Standing]:
    """Return how runs stand; Slurm is asked once for all of them.

    Raises:
        RunError: there is no run at one of the paths.
    """
    submitted = {run: _job_ids(run) for run in runs}
    try:
        known = client.jobs(job for jobs in submitted.values() for job in jobs)
    except client.SlurmError as error:  # the directories still tell what has happened
        print(f"warning: of waiting and running jobs nothing is known: {error}", file=sys.stderr)
        return [_standing(run, None, "") for run in runs]
    alive = {j: job for j, job in known.items() if job.state not in client.ENDED}
    last = {run: jobs[-1] for run, jobs in submitted.items() if jobs and not {*jobs} & {*alive}}
    ended = {j: known[j].state for j in last.values() if j in known}
    ended |= client.ends(job for job in last.values() if job not in known)
    found = []
    for run, jobs in submitted.items():
        job = next((alive[j] for j in reversed(jobs) if j in alive), None)
        gone = f"job {last[run]}: {ended.get(last[run], 'forgotten')}" if run in last else ""
        found.append(_standing(run, job, gone))
    return found


def find_runs(directory: Path) -> list[RunDir]:
    """Return the runs that lie directly in a directory, those changed last at the end."""
    if not directory.is_dir():
        return []
    found = [RunDir(path) for path in directory.iterdir() if RunDir(path).config_file.exists()]
    return sorted(found, key=lambda run: run.path.stat().st_mtime)


def show_table(found: Iterable[Standing]) -> None:
    """Print a line for each run."""
    columns = ("run", "state", "job", "attempts", "step", "images/s", "ETA", *_SHOWN, "why")
    rows = [
        (
            one.run,
            one.state,
            one.job_id or "-",
            str(one.num_attempts),
            _progress(one),
            _number(one.images_per_s, ",.0f"),
            _duration(one.eta_s),
            *(_number(one.metrics.get(name), ".4g") for name in _SHOWN),
            one.why,
        )
        for one in found
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    room = _room_for_reason(columns, rows)
    for name in columns:
        is_text = name in ("run", "state", "job", "why")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for *cells, why in rows:
        reason = Text(why)
        reason.truncate(room, overflow="ellipsis")
        table.add_row(*map(Text, cells), reason)
    # Where its own sum of widths is too large, rich would take from numbers as from the reason.
    Console(soft_wrap=True, highlight=False, width=_UNBOUNDED).print(table)


def _room_for_reason(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how many characters a terminal has for the last column, beside all others."""
    if not sys.stdout.isatty():
        return _UNBOUNDED
    widths = [max(map(len, cells)) for cells in list(zip(columns, *rows, strict=True))[:-1]]
    taken = sum(width + _GAP for width in widths) + _GAP
    return max(_LEAST_REASON, shutil.get_terminal_size().columns - taken)


def show_whole(one: Standing) -> None:
    """Print all that is known of a run, a line each."""
    console = Console(soft_wrap=True, highlight=False)
    lines = {
        "run": one.path,
        "state": f"{one.state}: {one.why}",
        "job": one.job_id,
        "nodes": one.nodes,
        "expected start": one.start if one.state == "pending" else None,
        "step": _progress(one),
        "images/s": _number(one.images_per_s, ",.0f"),
        "time left": _duration(one.eta_s),
        "last checkpoint": None
        if one.checkpoint_age_s is None
        else f"{_duration(one.checkpoint_age_s)} ago",
        **{name: f"{value:.6g}" for name, value in sorted(one.metrics.items())},
    }
    for name, value in lines.items():
        if value is not None:
            console.print(Text(f"{name:18}{value}"))
    for number, why in enumerate(one.ends, start=1):
        console.print(Text(f"attempt {number:<10}{why}"))


def as_json(found: Sequence[Standing]) -> str:
    """Return the standings for programs."""
    return json.dumps([asdict(one) for one in found], indent=2)


def _standing(run: RunDir, job: client.QueuedJob | None, gone: str) -> Standing:
    """Return how a run stands.

    Args:
        job: that waits or runs.
        gone: what Slurm says of the last job, if there is none any more.
    """
    config = run.read_config()  # says so if there is no run
    state, why = _state(run, job, gone)
    last, rate, metrics = _last_metrics(run)
    known = attempts(run)
    sizes = [*read_json_lines(run.jobs_file), *known.values()]
    num_steps = next((x["num_steps"] for x in reversed(sizes) if "num_steps" in x), None)
    eta_s = None
    if state == "running" and rate and last is not None and num_steps:
        eta_s = (num_steps - last) * config["recipe"]["global_batch_size"] / rate
    ends = tuple(_end(attempt) for _, attempt in sorted(known.items()) if "ended_s" in attempt)
    return Standing(
        run=run.id,
        path=str(run.path),
        state=state,
        why=why,
        job_id=job.job_id if job else None,
        nodes=known[max(known)].get("nodes") if known else None,
        start=job.start if job else None,
        num_attempts=run.num_attempts,
        ends=ends,
        step=last,
        num_steps=num_steps,
        images_per_s=rate,
        eta_s=eta_s,
        checkpoint_age_s=_checkpoint_age_s(run),
        metrics=metrics,
    )


def _state(run: RunDir, job: client.QueuedJob | None, gone: str) -> tuple[str, str]:
    if job and job.state != "PENDING":
        return "running", f"{job.state.lower()} on {job.num_nodes} nodes, {job.time_left} left"
    if job:
        return "pending", job.reason
    if run.is_alive:
        return "running", "on this machine, or on one that shares its locks"
    end = outcome(run)
    if end.state == "scheduled" and gone:
        return "stopped", f"ended before an attempt began ({gone})"
    if end.state == "crashed" and gone:
        return "crashed", f"{end.reason} ({gone})"
    return end.state, end.reason


def _job_ids(run: RunDir) -> list[str]:
    return [str(line["slurm_job_id"]) for line in read_json_lines(run.jobs_file)]


def _last_metrics(run: RunDir) -> tuple[int | None, float | None, dict[str, float]]:
    """Return the last step, the last rate, and the newest figure of each name."""
    if not run.metrics_file.exists():
        return None, None, {}
    with run.metrics_file.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = file.read().splitlines()
    figures: dict[str, float] = {}
    step: int | None = None
    for line in lines:
        try:
            record: dict[str, Any] = json.loads(line)
            figures |= record["metrics"]
            step = record["step"]
        except (ValueError, KeyError, TypeError):  # the first may be cut, the last torn
            continue
    return step, figures.get("perf/images_per_s"), figures


def _checkpoint_age_s(run: RunDir) -> float | None:
    manifests = run.checkpoints_dir.glob("step-*/manifest.json")
    newest = max((path.stat().st_mtime for path in manifests), default=None)
    return None if newest is None else max(0.0, time.time() - newest)


def _end(attempt: dict[str, Any]) -> str:
    return str(attempt.get("why") or f"ended with exit code {attempt.get('exit_code')}")


def _progress(one: Standing) -> str:
    done = "-" if one.step is None else f"{one.step:,}"
    return f"{done}/{one.num_steps:,}" if one.num_steps else done


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
