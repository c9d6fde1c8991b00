"""Summarize a sweep: its best run, and the importance of the swept keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_sharding.format.location import fold_name
from orchestrator.metrics import RANKED_BY, score
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.reports.compare import FOLD

_SUCCESSFUL = ("finished", "stopped")


@dataclass(frozen=True)
class SweepPoint:
    """A run of a sweep: the values of the swept keys, as text, and the objective."""

    run: str
    values: dict[str, str]
    objective: float


@dataclass(frozen=True)
class SweepSummary:
    """The points of a sweep that compare: on the same images, under the same protocol.

    Args:
        metric: the name of the objective.
        points: the points, the best first.
        place: the images and the protocol.
    """

    metric: str
    points: tuple[SweepPoint, ...]
    place: str = ""

    def importance(self) -> dict[str, float]:
        """Compute the fraction of the objective's variance that each key explains alone, 0..1.

        The correlation ratio, eta squared, of a one-way analysis of variance: it is too high with
        few points for each value, and excludes interactions of keys.
        """
        objectives = np.array([point.objective for point in self.points])
        mean = objectives.mean()
        total = float(((objectives - mean) ** 2).sum())
        fractions = {}
        for key in self.points[0].values:
            groups: dict[str, list[float]] = {}
            for point in self.points:
                groups.setdefault(point.values[key], []).append(point.objective)
            between = sum(len(group) * (np.mean(group) - mean) ** 2 for group in groups.values())
            fractions[key] = float(between) / total if total else 0.0
        return fractions


def summarize(records: Sequence[Record], values: Sequence[dict[str, str]]) -> list[SweepSummary]:
    """Summarize a sweep on each set of images and protocol with two or more points, largest first.

    Args:
        values: the values of the swept keys of each run.
    """
    places: dict[str, list[tuple[Record, dict[str, str]]]] = {}
    for record, own_values in zip(records, values, strict=True):
        if record.status in _SUCCESSFUL:
            data = str(record.config.get("data.name"))
            if record.data_fingerprint:
                data += f"-{record.data_fingerprint[:8]}"
            if (
                record.config.get(FOLD) is not None
            ):  # its metrics are not of the other folds' images
                data += f"-{fold_name(record.config[FOLD])}"
            place = f"{data}/{record.config.get('data.eval_protocol')}"
            places.setdefault(place, []).append((record, own_values))
    summaries = [_summarize_place(place, runs) for place, runs in places.items()]
    return sorted(filter(None, summaries), key=lambda summary: -len(summary.points))


def _summarize_place(
    place: str, runs: Sequence[tuple[Record, dict[str, str]]]
) -> SweepSummary | None:
    """Rank points by the first metric that two or more have, at its best during each run."""
    for name in RANKED_BY:
        rank = partial(score, name)
        points = [
            SweepPoint(record.id, values, max(logged, key=rank))
            for record, values in runs
            if (logged := curve(RunDir(Path(record.path)), name).values())
        ]
        if len(points) > 1:
            points.sort(key=lambda point: rank(point.objective), reverse=True)
            return SweepSummary(name, tuple(points), place)
    return None
