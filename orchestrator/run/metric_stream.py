"""metrics.jsonl -> the points that count, each once.

The file is only ever appended to, and two things make it more than a list of points. A line may be
torn, since its writer was killed: it is passed over. And after a rollback the steps between the
checkpoint and the crash stand there twice: the first value counts, because it may have been shipped
already and no tracking server can take a point back. So a point is fresh when there was none of its
step before under the same name; steps that another `logging.every_steps` adds come out of order.
"""

import json
import math
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.redact import mlflow_safe_name
from orchestrator.run.rundir import RunDir, reading


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric; `value` may be NaN or infinite."""

    key: str
    value: float
    step: int
    time_ms: int


def as_stored(value: float) -> float:
    """Return a value as it is sent to MLflow, whose SQL store takes NaN but no infinity.

    It would keep the largest number instead, which its charts and we would take for a figure.
    """
    return float(value) if math.isfinite(value) else math.nan


@dataclass
class PointDeduplicator:
    """Lets every (key, step) through once, and notes what was computed again."""

    last_time_ms: int | None = None
    _steps: "dict[str, array[int]]" = field(
        default_factory=lambda: defaultdict(partial(array, "q"))
    )
    _recomputed: dict[int, tuple[int, int]] = field(default_factory=dict)

    def new_points(self, record: Any) -> list[Point]:
        """Return the points of a record that have not been seen; a malformed record has none."""
        passed = []
        for point in _points(record):
            self.last_time_ms, steps = point.time_ms, self._steps[point.key]
            place = len(steps)
            if steps and point.step <= steps[-1]:
                self._note_again(record.get("attempt", 1), point.step)
                place = bisect_left(steps, point.step)
                if steps[place] == point.step:
                    continue
            steps.insert(place, point.step)
            passed.append(point)
        return passed

    def _note_again(self, attempt: int, step: int) -> None:
        if step > 0:  # step 0 comes before all training: an attempt says there what it is made of
            first, last = self._recomputed.get(attempt, (step, step))
            self._recomputed[attempt] = (min(first, step), max(last, step))

    @property
    def rollbacks(self) -> str:
        """Which attempts computed which steps again, or an empty string."""
        return "; ".join(
            f"attempt {attempt}: steps {first}-{last} computed again"
            for attempt, (first, last) in sorted(self._recomputed.items())
        )


@dataclass
class MetricTail:
    """Reads a metrics file as it grows, from its beginning."""

    file: Path
    end_bytes: int = 0
    sieve: PointDeduplicator = field(default_factory=PointDeduplicator)

    def batches(self, shipped_bytes: int, size: int) -> Iterator[tuple[list[Point], int]]:
        """Yield what has been appended as `(fresh points, bytes of the file they cover)`.

        Args:
            shipped_bytes: points before this place of the file are read and not yielded.
            size: a batch is full with this many points; a record is never split over two.
        """
        batch: list[Point] = []
        for end_bytes, record in read_records(self.file, self.end_bytes):
            self.end_bytes = end_bytes
            fresh = self.sieve.new_points(record)
            if end_bytes > shipped_bytes:
                batch += fresh
            if len(batch) >= size:
                yield batch, end_bytes
                batch = []
        if batch:
            yield batch, self.end_bytes


def is_end_of_line(file: Path, end_bytes: int) -> bool:
    """Whether a line of a file ends there; not so in one that was cut or put back from a copy."""
    if end_bytes == 0 or not file.exists():
        return end_bytes == 0
    with file.open("rb") as lines:
        lines.seek(end_bytes - 1)
        return lines.read(1) == b"\n"


def curve(run: RunDir, name: str) -> dict[int, float]:
    """Return a figure of a run by its steps, in order, where it is finite, from its directory."""
    found, sieve = dict[int, float](), PointDeduplicator()
    for _, line in read_records(run.metrics_file, start_bytes=0):
        points = (point for point in sieve.new_points(line) if point.key == name)
        found |= {point.step: point.value for point in points if math.isfinite(point.value)}
    return dict(sorted(found.items()))


def read_records(file: Path, start_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield `(where it ends, record)`; a last line without its newline is not there yet.

    Raises:
        RunError: the file cannot be read.
    """
    with reading(file):
        if not file.exists():
            return
        lines = file.open("rb")
    with lines, reading(file):
        lines.seek(start_bytes)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            start_bytes += len(line)
            try:
                yield start_bytes, json.loads(line)
            except ValueError:  # torn: its writer was killed, and the next attempt ended the line
                continue


def _points(record: Any) -> Iterator[Point]:
    match record:
        case {"step": int(step), "time_ms": int(time_ms), "metrics": dict(metrics)} if (
            0 <= step < 1 << 63
        ):
            for key, value in metrics.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield Point(mlflow_safe_name(key), value, step, time_ms)
