"""What a sweep came to: its best point, which of the varied keys mattered, and pictures of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from orchestrator.metrics import RANKED_BY, score
from orchestrator.plot_style import COLOURS, styled
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import Record

_ENDED_WELL = ("finished", "stopped")


@dataclass(frozen=True)
class Point:
    """A run of a sweep: what is varied, as text, and what it was worth."""

    run: str
    values: dict[str, str]
    worth: float


@dataclass(frozen=True)
class Summary:
    """The points that came to something, the best first, and what they are judged by.

    Args:
        place: the images and the protocol.
    """

    figure: str
    points: tuple[Point, ...]
    place: str = ""

    @property
    def keys(self) -> list[str]:
        return list(self.points[0].values)

    def importance(self) -> dict[str, float]:
        """Return the share of the results' variance that each key explains by itself, 0..1.

        The correlation ratio, eta squared, of a one-way analysis of variance: with few points for
        each value it is too high, and what keys do together is in none of them.
        """
        worths = np.array([point.worth for point in self.points])
        mean = worths.mean()
        total = float(((worths - mean) ** 2).sum())
        found = {}
        for key in self.keys:
            groups: dict[str, list[float]] = {}
            for point in self.points:
                groups.setdefault(point.values[key], []).append(point.worth)
            means = (
                len(group) * (np.mean(group) - worths.mean()) ** 2 for group in groups.values()
            )
            found[key] = float(sum(means)) / total if total else 0.0
        return found


def summarize(records: Sequence[Record], values: Sequence[dict[str, str]]) -> list[Summary]:
    """Return what a sweep came to on each set of images and protocol, that of most points first.

    One that fewer than two points came to anything on has none.

    Args:
        values: of each run, what it had of the keys that are varied.
    """
    places: dict[str, list[tuple[Record, dict[str, str]]]] = {}
    for one, own in zip(records, values, strict=True):
        if one.status in _ENDED_WELL:
            data = str(one.config.get("data.name"))
            if one.data_fingerprint:
                data += f"-{one.data_fingerprint[:8]}"
            place = f"{data}/{one.config.get('data.eval_protocol')}"
            places.setdefault(place, []).append((one, own))
    found = [_summary(place, runs) for place, runs in places.items()]
    return sorted(filter(None, found), key=lambda one: -len(one.points))


def _summary(place: str, runs: Sequence[tuple[Record, dict[str, str]]]) -> Summary | None:
    for figure in RANKED_BY:  # by the best value of each run, as for a sweeper
        points = [
            Point(one.id, own, max(measured, key=lambda value: score(figure, value)))
            for one, own in runs
            if (measured := curve(RunDir(Path(one.path)), figure).values())
        ]
        if len(points) > 1:
            ranked = sorted(points, key=lambda point: -score(figure, point.worth))
            return Summary(figure, tuple(ranked), place)
    return None


def draw_summary(summary: Summary, directory: Path) -> list[Path]:
    """Write pictures of a sweep; return the files."""
    written = []
    for name, figure in (
        ("parallel-coordinates", draw_parallel(summary)),
        ("importance", draw_importance(summary)),
    ):
        written.append(directory / f"{name}.png")
        with styled():
            figure.savefig(written[-1])
    return written


def draw_parallel(summary: Summary) -> Figure:
    """Return a line for each point, through what it had of each key, coloured by its worth."""
    worths = [point.worth for point in summary.points]
    shade, colour = Normalize(min(worths), max(worths)), colormaps["cividis"]
    with styled():
        figure = Figure(figsize=(2.5 + 1.8 * len(summary.keys), 4), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False)
        ticks = {key: _ordered({p.values[key] for p in summary.points}) for key in summary.keys}
        for point in reversed(summary.points):  # the best on top
            heights = [_height(ticks[key], point.values[key]) for key in summary.keys]
            heights.append(float(shade(point.worth)))
            axes.plot(range(len(heights)), heights, color=colour(shade(point.worth)), alpha=0.8)
        for place, key in enumerate(summary.keys):
            for value in ticks[key]:
                _mark(axes, place, _height(ticks[key], value), value)
        for worth in (min(worths), max(worths)):
            _mark(axes, len(summary.keys), float(shade(worth)), f"{worth:.4g}")
        labels = [*(key.replace(".", ".\n") for key in summary.keys), summary.figure]
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(labels) - 0.7)
        for place in range(len(labels)):
            axes.axvline(place, color="black", linewidth=0.8)
        axes.spines["left"].set_visible(False)
    return figure


def _mark(axes: Axes, place: float, height: float, text: str) -> None:
    """Write a value beside its place on an axis, readable over the lines that begin there."""
    under = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.text(place + 0.04, height, text, fontsize=7, va="center", bbox=under)


def draw_importance(summary: Summary) -> Figure:
    """Return how much of the variance each key explains by itself."""
    found = sorted(summary.importance().items(), key=lambda item: item[1])
    with styled():
        figure = Figure(figsize=(6, 1 + 0.4 * len(found)), layout="constrained")
        axes = figure.subplots()
        axes.barh([key for key, _ in found], [100 * share for _, share in found], color=COLOURS[0])
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"share of the variance of {summary.figure} (%)")
    return figure


def _ordered(values: set[str]) -> list[str]:
    """Return values as one would write them: numbers by size, then words."""

    def place(value: str) -> tuple[int, float, str]:
        try:
            return (0, float(value), "")
        except ValueError:
            return (1, 0.0, value)

    return sorted(values, key=place)


def _height(ticks: Sequence[str], value: str) -> float:
    return 0.5 if len(ticks) == 1 else ticks.index(value) / (len(ticks) - 1)
