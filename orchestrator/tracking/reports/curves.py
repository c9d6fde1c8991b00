"""Curves of compared runs, as a picture."""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.plot_style import COLOURS, MARKERS, styled
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.reports.compare import ComparableGroup, RunGroup

_SHOWN = (
    ("val/top1", "top-1 accuracy, validation (%)"),
    ("val/loss", "loss, validation (nats)"),
    ("train/loss", "loss, training (nats)"),
)
_MAX_ROWS = len(COLOURS)


Curve = dict[int, float]  # values by their steps


def logged(record: Record, name: str) -> Curve:
    """Return a figure of a run as its directory has it."""
    return curve(RunDir(Path(record.path)), name)


def draw_curves(
    sections: Sequence[ComparableGroup],
    file: Path,
    curve_of: Callable[[Record, str], Curve] = logged,
) -> None:
    """Write a PNG or SVG, by the file's ending: each row is a line, with a band over its seeds.

    Of more rows than there are colours, the best of each section are drawn. A run that began with
    the weights of another that is drawn goes on where that one was.
    """
    in_turn = zip_longest(*(section.rows for section in sections))
    rows = [row for best in in_turn for row in best if row is not None][:_MAX_ROWS]
    by_uid = {one.uid: one for row in rows for one in row.records if one.uid}
    with styled():
        figure = Figure(figsize=(4.2 * len(_SHOWN), 4.2), layout="constrained")
        for axes, (name, label) in zip(figure.subplots(1, len(_SHOWN)), _SHOWN, strict=True):
            for number, row in enumerate(rows):
                found = [curve_of(one, name) for one in row.records]
                draw_row(axes, row, found, number, seen=_seen_before(row.records[0], by_uid))
            axes.set_xlabel("images seen")
            axes.set_ylabel(label)
        legends = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
        handles = {label: handle for legend in legends for handle, label in legend}
        figure.legend(
            [*handles.values()], [*handles], loc="outside lower center", ncols=min(3, len(rows))
        )
        figure.savefig(file)


def _seen_before(record: Record, by_uid: Mapping[str, Record]) -> int:
    """Return how many images a run's weights had seen in the drawn runs that they come from."""
    num_images, known = 0, {record.uid}
    while (said := record.init_from) and "step" in said:
        parent = by_uid.get(str(said.get("uid")))
        if parent is None or parent.uid in known:
            break
        known.add(parent.uid)
        num_images += said["step"] * parent.config.get("recipe.global_batch_size", 1)
        record = parent
    return num_images


def label_of(row: RunGroup) -> str:
    """Return how a row is called in a legend: by what it differs in, as long as that is short."""
    system = row.records[0].model_title
    names = {key: "data" if key == "data.name" else key.rpartition(".")[2] for key in row.differs}
    told = (key for key in row.differs if key not in ("model.name", "model.kwargs"))
    short = ", ".join(f"{names[key]}={row.differs[key]}" for key in told)
    seeds = f" ({len(row.records)} runs)" if len(row.records) > 1 else ""
    return f"{system}{f', {short}' if short and len(short) <= 40 else ''}{seeds}"


def draw_row(
    axes: Axes,
    row: RunGroup,
    found: Sequence[Curve],
    number: int,
    label: str | None = None,
    seen: int = 0,
) -> None:
    """Draw the mean of a row's curves over images seen, and the band that they are within.

    Args:
        seen: images that its weights had seen before, which are added.
    """
    curves = [curve for curve in found if curve]
    if not curves:
        return
    batch = row.records[0].config.get("recipe.global_batch_size", 1)
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not shared:  # each of the curves is finite where no other is
        return
    values = np.array([[curve[step] for step in shared] for curve in curves])
    images = np.array(shared) * batch + seen
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
