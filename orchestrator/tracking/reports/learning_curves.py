"""The report's figures where there is less than a handful of points: how the runs learned."""

from collections.abc import Callable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from orchestrator.plot_style import COLOURS, styled
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.reports.compare import RunGroup
from orchestrator.tracking.reports.curves import Curve, draw_row, label_of
from orchestrator.tracking.reports.figures import HEIGHT, WIDTH, mark_off
from orchestrator.tracking.reports.report import ResultsReport

CurveOf = Callable[[Record, str], Curve]
LEARNED = {  # name of the figure: the figure of the runs, and the axis
    "error-over-images": ("val/top1", "top-1 error, validation (%)"),
    "loss-over-images": ("val/loss", "loss, validation (nats)"),
}
_LINE_STYLES = ("--", ":", "-.")


def learning_curves(told: ResultsReport, curve_of: CurveOf) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures; each row of runs is a line, the best rows first."""
    rows = [row for section in told.sections for row in section.rows][: len(COLOURS)]
    for name, (figure, label) in LEARNED.items():
        curves = [[_drawn(curve_of(one, figure), figure) for one in row.records] for row in rows]
        if any(curve for some in curves for curve in some):
            published = told if figure == "val/top1" else None
            yield name, _draw(rows, curves, label, published)


def _drawn(curve: Curve, figure: str) -> Curve:
    return {step: 100 - x for step, x in curve.items()} if figure == "val/top1" else curve


def _draw(
    rows: list[RunGroup], curves: list[list[Curve]], label: str, published: ResultsReport | None
) -> Figure:
    with styled():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        for number, (row, some) in enumerate(zip(rows, curves, strict=True)):
            name = row.name if len(row.records) == 1 else label_of(row)
            draw_row(axes, row, some, number, name)
        if published:
            _draw_published(axes, published)
        axes.set_yscale("log")
        mark_off(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("images seen")
        axes.set_ylabel(label)
        axes.legend(loc="best", fontsize=8)
    return figure


def _draw_published(axes: Axes, told: ResultsReport) -> None:
    """Draw what was published as levels."""
    single = [point for point in told.published if point.top1 and not point.is_ensemble]
    for point, line in zip(single, _LINE_STYLES, strict=False):
        unsure = "" if point.is_verified else ", unverified"
        name = f"{point.system}, published{unsure}"
        axes.axhline(point.top1 or 0.0, color="#555555", linestyle=line, linewidth=1, label=name)
