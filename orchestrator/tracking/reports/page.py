"""Write the report: one page that needs no network, and its figures for a paper."""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from orchestrator.number_format import pluralize
from orchestrator.plot_style import COLOURS, styled
from orchestrator.tracking.records.provenance import Edge, topological_rows
from orchestrator.tracking.reports.curves import logged
from orchestrator.tracking.reports.figures import AXES, drawn_error, error_figures, plotted_points
from orchestrator.tracking.reports.learning_curves import CURVES, CurveOf, learning_curves
from orchestrator.tracking.reports.report import ResultPoint, ResultsReport

PAGE = "report.html"


def write_report(
    report: ResultsReport, ancestry: Sequence[Edge], directory: Path, curve_of: CurveOf = logged
) -> list[Path]:
    """Write report.html, and each of its figures as PNG and SVG; return the files.

    Args:
        curve_of: a function that reads a metric of a run, for learning curves.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for kind in ("error", "map", "loss"):
        for old in directory.glob(f"{kind}-over-*"):  # may be of other data
            old.unlink()
    drawn, written = list[tuple[str, str]](), list[Path]()
    for name, figure in [*error_figures(report)] or learning_curves(report, curve_of):
        text = _svg(figure)
        files = [directory / f"{name}.{ending}" for ending in ("png", "svg")]
        with styled():
            figure.savefig(files[0])
        files[1].write_text(text)
        drawn.append((name, text))
        written += files
    page = directory / PAGE
    page.write_text(_render(report, drawn, ancestry))
    return [page, *written]


def _render(
    report: ResultsReport, drawn: Sequence[tuple[str, str]], ancestry: Sequence[Edge]
) -> str:
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    figures = [(name, _inline(text, name), _caption(report, name)) for name, text in drawn]
    tree = _inline(_svg(_draw_ancestry(ancestry)), "ancestry") if ancestry else ""
    single = (point for point in report.published if not point.is_ensemble)
    protocols = {point.protocol for point in single if point.protocol} - {*report.protocols}
    return templates.get_template(PAGE).render(
        title=f"{_quantity(report)} on {report.data}: {' and '.join(_kinds(report))}",
        subtitle=_subtitle(report),
        report=report,
        figures=figures,
        published_protocols=sorted(protocols) if report.measured else [],
        ancestry=tree,
        error=_error,
        has_map=_has_map(report),
        quoted=_quote,
        number=lambda value: "" if value is None else f"{value:,.0f}",
        short=_short_number,
    )


def _has_map(report: ResultsReport) -> bool:
    """Check whether the results are of images with several labels, which have no error."""
    return any(point.map is not None for point in report.points)


def _quantity(report: ResultsReport) -> str:
    return "Mean average precision" if _has_map(report) else "Error"


def _kinds(report: ResultsReport) -> list[str]:
    points = {"published": report.published, "measured": report.measured}
    return [kind for kind, members in points.items() if members]


def _subtitle(report: ResultsReport) -> str:
    protocols = f", evaluated under {' and '.join(report.protocols)}" if report.measured else ""
    systems = {point.system for point in report.published if not point.is_ensemble}
    runs = pluralize(sum(point.num_runs for point in report.measured), "run")
    numbers = []
    if systems:
        numbers.append(pluralize(len(systems), "published system"))
    if report.measured:
        numbers.append(f"{pluralize(len(report.measured), 'system')} measured in {runs}")
    return f"{', '.join(numbers)}{protocols}. {datetime.now(UTC):%d %B %Y}."


def _caption(report: ResultsReport, name: str) -> str:
    if name in CURVES:
        _, axis_label = CURVES[name]
        bands = any(point.num_runs > 1 for point in report.measured)
        band = " Bands reach from the lowest to the highest of their seeds." if bands else ""
        return f"On {report.data}: {axis_label}, logarithmic, over the images seen.{band}"
    axis = next(axis for axis in AXES if name.endswith(axis.replace("_", "-")))
    drawn = [point.result for point in plotted_points(report, axis)]
    sentences = {
        f"Top-{drawn_error(report)} error on {report.data} over {AXES[axis]}, logarithmic.": True,
        "Squares: measured, mean and standard deviation.": any(p.is_measured for p in drawn),
        "Circles: published, by the sources in the table.": any(not p.is_measured for p in drawn),
        "Diamonds: ensembles, on the challenge's test images.": any(p.is_ensemble for p in drawn),
        "Hollow ones were not verified.": any(not p.is_verified for p in drawn),
        f"{datetime.now(UTC):%d %B %Y}.": True,
    }
    return " ".join(sentence for sentence, is_true in sentences.items() if is_true)


def _error(point: ResultPoint, top: int) -> str:
    quoted = _quote(point.error(top), point.std(top))
    return quoted if point.is_verified or not quoted else f"{quoted}?"


def _quote(value: float | None, std: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}{f' ± {std:.2f}' if std else ''}"


def _short_number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    with styled():
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _inline(text: str, name: str) -> str:
    """Prepare an SVG for a page with others: its ids get a prefix."""
    text = text[text.index("<svg") :]
    text = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)


def _draw_ancestry(edges: Sequence[Edge]) -> Figure:
    rows = topological_rows(edges)
    positions = {name: (x, -y) for x, names in enumerate(rows) for y, name in enumerate(names)}
    height = max(len(names) for names in rows)
    with styled():
        figure = Figure(figsize=(3.2 * len(rows), 0.5 + 0.55 * height), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_xlim(-0.5, len(rows) - 0.3)
        axes.set_ylim(-height + 0.4, 0.6)
        for name, (x, y) in positions.items():
            axes.text(x, y, _short(name), ha="center", va="center", fontsize=8, zorder=3,
                      bbox={"boxstyle": "round", "fc": "white", "ec": COLOURS[0]})  # fmt: skip
        for edge in edges:
            (x0, y0), (x1, y1) = positions[edge.parent], positions[edge.child]
            axes.annotate("", (x1 - 0.3, y1), (x0 + 0.3, y0), arrowprops={"arrowstyle": "->"})
            axes.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.12, edge.kind, ha="center", fontsize=6)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"
