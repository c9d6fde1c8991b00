"""Read metrics.jsonl: each point once, although the file may repeat steps and have torn lines.

A line is torn if its writer was killed; it is skipped. After a rollback the steps between the
checkpoint and the crash are logged twice. The first value counts, since it may have been sent
already and a tracking server cannot take a point back. Steps may be out of order: a later attempt
may log between them (`logging.every_steps`).
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
    """Convert a value for MLflow, whose SQL store takes NaN but stores infinity as a number."""
    return float(value) if math.isfinite(value) else math.nan


@dataclass
class PointDeduplicator:
    """Passes every (key, step) once, and records which steps were recomputed."""

    last_time_ms: int | None = None
    _steps: "dict[str, array[int]]" = field(
        default_factory=lambda: defaultdict(partial(array, "q"))
    )
    _recomputed: dict[int, tuple[int, int]] = field(default_factory=dict)

    def new_points(self, record: Any) -> list[Point]:
        """Return the points of a record that are new; a malformed record has none."""
        new = []
        for point in _points(record):
            self.last_time_ms, steps = point.time_ms, self._steps[point.key]
            index = len(steps)
            if steps and point.step <= steps[-1]:
                self._add_recomputed(record.get("attempt", 1), point.step)
                index = bisect_left(steps, point.step)
                if steps[index] == point.step:
                    continue
            steps.insert(index, point.step)
            new.append(point)
        return new

    def _add_recomputed(self, attempt: int, step: int) -> None:
        if step > 0:  # step 0 precedes the training: every attempt logs its constants there
            first, last = self._recomputed.get(attempt, (step, step))
            self._recomputed[attempt] = (min(first, step), max(last, step))

    @property
    def rollbacks(self) -> str:
        """The recomputed steps of each attempt as text; empty if there are none."""
        return "; ".join(
            f"attempt {attempt}: steps {first}-{last} computed again"
            for attempt, (first, last) in sorted(self._recomputed.items())
        )


@dataclass
class MetricTail:
    """Reads a metrics file from its beginning, and on as it grows."""

    file: Path
    end_bytes: int = 0
    deduplicator: PointDeduplicator = field(default_factory=PointDeduplicator)

    def batches(self, shipped_bytes: int, size: int) -> Iterator[tuple[list[Point], int]]:
        """Yield the appended data as `(new points, end in the file in bytes)`.

        Args:
            shipped_bytes: end of the points that are read but not yielded.
            size: minimum number of points of a batch but the last; records are not split.
        """
        batch: list[Point] = []
        for end_bytes, record in read_records(self.file, self.end_bytes):
            self.end_bytes = end_bytes
            new = self.deduplicator.new_points(record)
            if end_bytes > shipped_bytes:
                batch += new
            if len(batch) >= size:
                yield batch, end_bytes
                batch = []
        if batch:
            yield batch, self.end_bytes


def is_end_of_line(file: Path, end_bytes: int) -> bool:
    """Check whether a line ends at an offset; if not, the file was cut or replaced."""
    if end_bytes == 0 or not file.exists():
        return end_bytes == 0
    with file.open("rb") as lines:
        lines.seek(end_bytes - 1)
        return lines.read(1) == b"\n"


def curve(run: RunDir, name: str) -> dict[int, float]:
    """Return the finite values of a metric of a run by step, in order."""
    values = {
        point.step: point.value
        for points, _ in MetricTail(run.metrics_file).batches(0, 1000)
        for point in points
        if point.key == name and math.isfinite(point.value)
    }
    return dict(sorted(values.items()))


def read_records(file: Path, start_bytes: int) -> Iterator[tuple[int, Any]]:
    """Yield `(end in bytes, record)` of each complete line of a metrics file."""
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
            except ValueError:  # torn, and ended by the next attempt
                continue


def _points(record: Any) -> Iterator[Point]:
    match record:
        case {"step": int(step), "time_ms": int(time_ms), "metrics": dict(metrics)} if (
            0 <= step < 1 << 63
        ):
            for key, value in metrics.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    yield Point(mlflow_safe_name(key), value, step, time_ms)
