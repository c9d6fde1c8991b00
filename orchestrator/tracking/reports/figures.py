"""Draw the report's figures: errors over year, compute, parameters and time."""

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
_KINDS = {  # (is_ensemble, is_verified): legend, marker, face colour
    (False, True): ("published", "o", _PUBLISHED),
    (False, False): ("published, unverified", "o", "white"),
    (True, True): ("ensemble", "D", _PUBLISHED),
    (True, False): ("ensemble, unverified", "D", "white"),
}
_MIN_POINTS = 5  # fewer are as clear in a table
WIDTH, HEIGHT = 4.6, 3.5  # inches: legible in a column of a paper, and on a phone
_LABEL_OFFSETS = (  # in points, with the alignment; the first free position is taken
    ((5, 0), "left", "center"),
    ((-5, 0), "right", "center"),
    ((0, 5), "center", "bottom"),
    ((0, -5), "center", "top"),
)


class PlottedPoint(NamedTuple):
    """A point at its position in a figure."""

    x: float
    y: float
    std: float
    result: ResultPoint


def error_figures(report: ResultsReport) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures; an axis with too few points is left out."""
    for axis, label in AXES.items():
        points = plotted_points(report, axis)
        if len(points) >= _MIN_POINTS and len({point.x for point in points}) > 1:
            name = f"error-over-{axis.replace('_', '-')}"
            yield name, _draw(points, axis, label, drawn_error(report))


def plotted_points(report: ResultsReport, axis: Axis) -> list[PlottedPoint]:
    """Return the points with a value on an axis."""
    top = drawn_error(report)
    values = ((point.at(axis), point.error(top), point) for point in report.points)
    return [  # an error of zero has no position on a logarithmic axis
        PlottedPoint(x, y, point.std(top) or 0.0, point)
        for x, y, point in values
        if x is not None and y
    ]


def drawn_error(report: ResultsReport) -> int:
    """Return 5 if top-5 errors have been published on the data, else 1.

    With ten classes, of which none are published, a top-5 error is almost meaningless.
    """
    return 5 if sum(point.top5 is not None for point in report.published) > 2 else 1


def _draw(points: Sequence[PlottedPoint], axis: Axis, label: str, top: int) -> Figure:
    with styled():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        _draw_published(axes, [one for one in points if not one.result.is_measured])
        _draw_measured(axes, [one for one in points if one.result.is_measured])
        axes.set_yscale("log")
        format_log_axis(axes.yaxis)
        if axis == "year":
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            axes.margins(x=0.1)
        else:
            axes.set_xscale("log")
            format_log_axis(axes.xaxis)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{TOP[top]} error (%)")
        axes.legend(loc="best", fontsize=8)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keeps the layout of this drawing
        _label_points(axes, points)
    return figure


def _draw_published(axes: Axes, points: Sequence[PlottedPoint]) -> None:
    for kind, (label, marker, face) in _KINDS.items():
        drawn = [
            point
            for point in points
            if (point.result.is_ensemble, point.result.is_verified) == kind
        ]
        if drawn:
            x, y, _, _ = zip(*drawn, strict=True)
            axes.scatter(
                x, y, c=face, edgecolors=_PUBLISHED, s=26, zorder=2, label=label, marker=marker
            )


def _draw_measured(axes: Axes, points: Sequence[PlottedPoint]) -> None:
    if points:
        x, y, std, _ = zip(*points, strict=True)
        axes.errorbar(x, y, std, fmt="s", color=_MEASURED, capsize=2, zorder=3, label="measured")


def format_log_axis(axis: XAxis | YAxis) -> None:
    """Label a logarithmic axis with few, plain numbers, at least two however narrow it is."""
    low, high = sorted(axis.get_view_interval())
    decades = LogLocator(10, subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=6)
    num_ticks = sum(low <= tick <= high for tick in decades.tick_values(low, high))
    axis.set_major_locator(decades if num_ticks > 1 else MaxNLocator(3))
    large = EngFormatter(sep="")
    axis.set_major_formatter(lambda x, _: large(x) if x >= 1000 else f"{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _label_points(axes: Axes, points: Sequence[PlottedPoint]) -> None:
    """Label the points that have space beside them, measured ones first."""
    centers = (axes.transData.transform((point.x, point.y)) for point in points)
    taken: list[BboxBase] = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in centers]
    if legend := axes.get_legend():
        taken.append(legend.get_window_extent())
    frame = axes.get_window_extent()
    for point in sorted(points, key=lambda point: (not point.result.is_measured, point.y)):
        for offset, horizontal, vertical in _LABEL_OFFSETS:
            label = axes.annotate(
                point.result.label,
                (point.x, point.y),
                xytext=offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=7,
                color="#333333",
            )
            box = label.get_window_extent()
            is_inside = frame.containsx(box.x0) and frame.containsx(box.x1)
            if is_inside and not box.count_overlaps(taken):
                taken.append(box)
                break
            label.remove()
