"""What runs achieved, side by side, from their directories alone: no tracking server is asked."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from orchestrator.rundir import RunDir
from orchestrator.tracking.outcome import attempts, outcome
from orchestrator.tracking.points import Point, Sieve, read_records

MISSING = "-"
NUMBERS = (
    "val\ntop-1\n(%)",
    "training\n(h:mm:ss)",
    "speed\n(img/s)",
    "params\n(M)",
)


@dataclass(frozen=True)
class Result:
    """What one run achieved; None where it has not logged a thing.

    Accuracies are the last ones of the validation set, in percent. `training_s` is the wall time of
    all attempts together, `images_per_s` the median over the run.
    """

    run_id: str
    model: str
    val_top1_percent: float | None
    training_s: float | None
    images_per_s: float | None
    num_params: int | None
    status: str


def results(run: RunDir) -> Result:
    """Return what a run achieved so far.

    Raises:
        RunError: there is no run at this path.
    """
    model = run.read_config().get("model") or {}
    points, last_time_ms = _read(run)
    latest = {point.key: point for point in points}  # steps only rise, so the last one stays
    speeds = [p.value for p in points if p.key == "perf/images_per_s" and p.value > 0]
    num_params = _value(latest, "model/num_params") or math.nan
    end = outcome(run)
    return Result(
        run_id=run.id,
        model=str(model.get("name", MISSING)),
        val_top1_percent=_value(latest, "val/top1"),
        training_s=_training_s(run, last_time_ms),
        images_per_s=statistics.median(speeds) if speeds else None,
        num_params=int(num_params) if math.isfinite(num_params) else None,
        status="running" if end.state == "crashed" and run.is_alive else end.state,
    )


def table(compared: Iterable[Result]) -> Table:
    """Return runs as the rows of a table, numbers aligned right and their units in the headers."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in ("run", "model"):  # these may be folded, numbers may not
        shown.add_column(header, overflow="fold", min_width=7)
    for header in NUMBERS:
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("status", min_width=9)
    for result in compared:
        shown.add_row(*_cells(result))
    return shown


def _cells(result: Result) -> tuple[str, ...]:
    millions = None if result.num_params is None else result.num_params / 1e6
    return (
        result.run_id,
        result.model,
        _number(result.val_top1_percent, ".2f"),
        MISSING if result.training_s is None else _clock(result.training_s),
        _number(result.images_per_s, ",.0f"),
        _number(millions, ".2f"),
        result.status.replace("_", " "),
    )


def _read(run: RunDir) -> tuple[list[Point], dict[int, int]]:
    """Return the fresh points, and when each attempt logged last."""
    points: list[Point] = []
    last_time_ms: dict[int, int] = {}
    sieve = Sieve()
    for _, record in read_records(run.metrics_file, start_bytes=0):
        points += sieve.fresh(record)
        match record:
            case {"attempt": int(attempt), "time_ms": int(time_ms)}:
                last_time_ms[attempt] = time_ms
    return points, last_time_ms


def _training_s(run: RunDir, last_time_ms: dict[int, int]) -> float | None:
    """Return the seconds of all attempts; one that was killed ended with its last metric."""
    total_s = [
        max(0.0, line.get("ended_s", last_time_ms.get(attempt, 0) / 1000) - line["started_s"])
        for attempt, line in attempts(run).items()
        if "started_s" in line
    ]
    return sum(total_s) if total_s else None


def _value(latest: dict[str, Point], key: str) -> float | None:
    point = latest.get(key)
    return None if point is None else point.value


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02}:{s:02}"
