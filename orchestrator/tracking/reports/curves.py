"""Draw curves of compared runs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.metrics import MAIN_METRICS, main_metrics
from orchestrator.plot_style import COLOURS, MARKERS, styled
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.reports.compare import ComparableGroup, RunGroup

_PANELS = {
    "val/top1": "top-1 accuracy, validation (%)",
    "val/map": "mean average precision, validation (%)",
    "val/loss": "loss, validation (nats)",
    "train/loss": "loss, training (nats)",
}
_MAX_ROWS = len(COLOURS)


Curve = dict[int, float]  # values by their steps


def logged(record: Record, name: str) -> Curve:
    """Read a metric of a run from its directory."""
    return curve(RunDir(Path(record.path)), name)


def draw_curves(
    sections: Sequence[ComparableGroup],
    file: Path,
    curve_of: Callable[[Record, str], Curve] = logged,
) -> None:
    """Write a PNG or SVG, by the file's ending: each row is a line, with a band over its seeds.

    Where there are more rows than colours, the best of each section are drawn. A run that started
    from the weights of another drawn run continues at the end of that one.
    """
    in_turn = zip_longest(*(section.rows for section in sections))
    rows = [row for best in in_turn for row in best if row is not None][:_MAX_ROWS]
    by_uid = {record.uid: record for row in rows for record in row.records if record.uid}
    curves = {
        name: [[curve_of(record, name) for record in row.records] for row in rows]
        for name in _PANELS
    }
    results = main_metrics({name for name in _PANELS if any(map(any, curves[name]))})
    panels = [name for name in _PANELS if name in results or name not in MAIN_METRICS]
    with styled():
        figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for number, row in enumerate(rows):
                num_seen = _images_before(row.records[0], by_uid)
                draw_row(axes, row, curves[name][number], number, num_seen=num_seen)
            axes.set_xlabel("images seen")
            axes.set_ylabel(_PANELS[name])
        legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
        handles = {label: handle for legend in legends for handle, label in legend}
        figure.legend(
            [*handles.values()], [*handles], loc="outside lower center", ncols=min(3, len(rows))
        )
        figure.savefig(file)


def _images_before(record: Record, by_uid: Mapping[str, Record]) -> int:
    """Count the images of the drawn runs that a run's initial weights come from."""
    num_images, visited = 0, {record.uid}
    while (origin := record.init_from) and "step" in origin:
        parent = by_uid.get(str(origin.get("uid")))
        if parent is None or parent.uid in visited:
            break
        visited.add(parent.uid)
        num_images += origin["step"] * parent.config.get("recipe.global_batch_size", 1)
        record = parent
    return num_images


def label_of(row: RunGroup) -> str:
    """Name a row in a legend, with its differences if these are short."""
    system = row.records[0].model_title
    short = ", ".join(
        f"{'data' if key == 'data.name' else key.rpartition('.')[2]}={value}"
        for key, value in row.differs.items()
        if key not in ("model.name", "model.kwargs")
    )
    seeds = f" ({len(row.records)} runs)" if len(row.records) > 1 else ""
    return f"{system}{f', {short}' if short and len(short) <= 40 else ''}{seeds}"


def draw_row(
    axes: Axes,
    row: RunGroup,
    curves: Sequence[Curve],
    number: int,
    label: str | None = None,
    num_seen: int = 0,
) -> None:
    """Draw the mean of a row's curves over images seen, and the band from lowest to highest.

    Args:
        num_seen: images that the initial weights had seen.
    """
    curves = [curve for curve in curves if curve]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    if not shared:
        return
    batch = row.records[0].config.get("recipe.global_batch_size", 1)
    values = np.array([[curve[step] for step in shared] for curve in curves])
    images = np.array(shared) * batch + num_seen
    axes.plot(
        images,
        values.mean(axis=0),
        label=label or label_of(row),
        color=COLOURS[number],
        marker=MARKERS[number],
        markevery=0.15 if len(images) > 1 else None,
    )
    if len(curves) > 1:
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(images, low, high, color=COLOURS[number], alpha=0.2, linewidth=0)
