"""Draw learning curves, the report's figures where there are only a few points."""

from collections.abc import Callable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from orchestrator.metrics import MAIN_METRICS
from orchestrator.plot_style import COLOURS, styled
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.reports.compare import RunGroup
from orchestrator.tracking.reports.curves import Curve, draw_row, label_of
from orchestrator.tracking.reports.figures import HEIGHT, WIDTH, format_log_axis
from orchestrator.tracking.reports.report import ResultsReport

CurveOf = Callable[[Record, str], Curve]
CURVES = {  # name of the figure: the metric, and the axis
    "error-over-images": ("val/top1", "top-1 error, validation (%)"),
    "map-over-images": ("val/map", "100 - mAP, validation (%)"),
    "loss-over-images": ("val/loss", "loss, validation (nats)"),
}
_LINE_STYLES = ("--", ":", "-.")


def learning_curves(report: ResultsReport, curve_of: CurveOf) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures; each row of runs is a line, the best rows first."""
    rows = [row for section in report.sections for row in section.rows][: len(COLOURS)]
    for name, (metric, label) in CURVES.items():
        curves = [[curve_of(record, metric) for record in row.records] for row in rows]
        if metric in MAIN_METRICS:
            curves = [[_to_error(curve) for curve in row_curves] for row_curves in curves]
        if any(curve for row_curves in curves for curve in row_curves):
            yield name, _draw(rows, curves, label, report if metric == "val/top1" else None)


def _to_error(accuracy: Curve) -> Curve:
    return {step: 100 - value for step, value in accuracy.items()}


def _draw(
    rows: list[RunGroup], curves: list[list[Curve]], label: str, published: ResultsReport | None
) -> Figure:
    with styled():
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.subplots()
        for number, (row, row_curves) in enumerate(zip(rows, curves, strict=True)):
            name = row.name if len(row.records) == 1 else label_of(row)
            draw_row(axes, row, row_curves, number, name)
        if published:
            _draw_published(axes, published)
        axes.set_yscale("log")
        format_log_axis(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("images seen")
        axes.set_ylabel(label)
        axes.legend(loc="best", fontsize=8)
    return figure


def _draw_published(axes: Axes, report: ResultsReport) -> None:
    """Draw published errors as horizontal lines."""
    single = [point for point in report.published if point.top1 and not point.is_ensemble]
    for point, line in zip(single, _LINE_STYLES, strict=False):
        name = f"{point.system}, published{'' if point.is_verified else ', unverified'}"
        axes.axhline(point.top1 or 0.0, color="#555555", linestyle=line, linewidth=1, label=name)
