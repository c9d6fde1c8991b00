"""The report's figures: errors over year, compute, parameters and time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox, BboxBase

from orchestrator.plot_style import COLOURS, styled
from orchestrator.tracking.reports.report import TOP, Axis, ResultPoint, ResultsReport

AXES: dict[Axis, str] = {
    "year": "year of the paper",
    "petaflop": "training compute (petaFLOP)",
    "num_params": "parameters",
    "device_hours": "training time (hours of a device)",
}
_PUBLISHED, _MEASURED = COLOURS[0], COLOURS[1]
_KINDS = {  # is it an ensemble, is it verified: what the legend says, marker, colour inside
    (False, True): ("published", "o", _PUBLISHED),
    (False, False): ("published, unverified", "o", "white"),
    (True, True): ("ensemble", "D", _PUBLISHED),
    (True, False): ("ensemble, unverified", "D", "white"),
}
_HANDFUL = 5  # points: fewer say no more in a plot than in a table
WIDTH, HEIGHT = 4.6, 3.5  # inches: legible in a column of a paper, and on a phone
_PLACES = (  # of a name beside its point, in points: the first that is free
    ((5, 0), "left", "center"),
    ((-5, 0), "right", "center"),
    ((0, 5), "center", "bottom"),
    ((0, -5), "center", "top"),
)


class Mark(NamedTuple):
    """A point where it is drawn."""

    x: float
    y: float
    std: float
    point: ResultPoint


def figures(told: ResultsReport) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures; an axis with less than a handful of points along it is left out."""
    for axis, label in AXES.items():
        marks = plotted_points(told, axis)
        if len(marks) >= _HANDFUL and len({mark.x for mark in marks}) > 1:
            name = f"error-over-{axis.replace('_', '-')}"
            yield name, _draw(marks, axis, label, drawn_error(told))


def plotted_points(told: ResultsReport, axis: Axis) -> list[Mark]:
    """Return the points that have a place over an axis."""
    top = drawn_error(told)
    placed = ((point.at(axis), point.error(top), point) for point in told.points)
    return [  # no error at all has no place on a logarithmic axis
        Mark(x, y, point.std(top) or 0.0, point) for x, y, point in placed if x is not None and y
    ]


def drawn_error(told: ResultsReport) -> int:
    """Return 5 if top-5 errors have been published on the data, else 1.

    With ten classes, which have no such figures, a top-5 error says next to nothing.
    """
    return 5 if sum(point.top5 is not None for point in told.published) > 2 else 1


def _draw(marks: Sequence[Mark], axis: Axis, label: str, top: int) -> Figure:
    with styled():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        _draw_published(axes, [mark for mark in marks if not mark.point.is_measured])
        _draw_measured(axes, [mark for mark in marks if mark.point.is_measured])
        axes.set_yscale("log")
        mark_off(axes.yaxis)
        if axis == "year":
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            axes.margins(x=0.1)
        else:
            axes.set_xscale("log")
            mark_off(axes.xaxis)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{TOP[top]} error (%)")
        axes.legend(loc="best", fontsize=8)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what is laid out stays; each drawing would do it again
        _name(axes, marks)
    return figure


def _draw_published(axes: Axes, marks: Sequence[Mark]) -> None:
    for (is_ensemble, is_verified), (label, shape, face) in _KINDS.items():
        some = [
            mark
            for mark in marks
            if (mark.point.is_ensemble, mark.point.is_verified) == (is_ensemble, is_verified)
        ]
        if some:
            x, y = [mark.x for mark in some], [mark.y for mark in some]
            axes.scatter(
                x, y, c=face, edgecolors=_PUBLISHED, s=26, zorder=2, label=label, marker=shape
            )


def _draw_measured(axes: Axes, marks: Sequence[Mark]) -> None:
    if marks:
        x, y, std, _ = zip(*marks, strict=True)
        axes.errorbar(x, y, std, fmt="s", color=_MEASURED, capsize=2, zorder=3, label="measured")


def mark_off(axis: XAxis | YAxis) -> None:
    """Give a logarithmic axis few and plain numbers, and more than one however narrow it is."""
    low, high = sorted(axis.get_view_interval())
    decades = LogLocator(10, subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=6)
    num_marks = sum(low <= mark <= high for mark in decades.tick_values(low, high))
    axis.set_major_locator(decades if num_marks > 1 else MaxNLocator(3))
    large = EngFormatter(sep="")
    axis.set_major_formatter(lambda x, _: large(x) if x >= 1000 else f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, marks: Sequence[Mark]) -> None:
    """Write the names of those points that have room for one beside them, measured ones first."""
    centers = (axes.transData.transform((mark.x, mark.y)) for mark in marks)
    taken: list[BboxBase] = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in centers]
    if legend := axes.get_legend():
        taken.append(legend.get_window_extent())
    frame = axes.get_window_extent()
    for mark in sorted(marks, key=lambda mark: (not mark.point.is_measured, mark.y)):
        for offset, side, line in _PLACES:
            name = axes.annotate(
                mark.point.label,
                (mark.x, mark.y),
                xytext=offset,
                textcoords="offset points",
                ha=side,
                va=line,
                fontsize=7,
                color="#333333",
            )
            box = name.get_window_extent()
            if (
                frame.containsx(box.x1)
                and frame.containsx(box.x0)
                and not box.count_overlaps(taken)
            ):
                taken.append(box)
                break
            name.remove()
