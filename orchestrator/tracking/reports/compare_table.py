"""Compared runs as tables of a terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from orchestrator.metrics import VAL_METRICS, column_header
from orchestrator.number_format import format_metric, pluralize
from orchestrator.redact import truncate_json
from orchestrator.tracking.reports.compare import ABSENT, ComparableGroup, MeanStd, RunGroup

_MAX_CHARACTERS = 24  # of a value in the table of what differs
_MAX_KEY_COLUMNS = 3  # beside the figures; more keys have a table of their own
_FIGURES = (  # name, header, what one of its unit is
    *((name, column_header(name), 1) for name in VAL_METRICS),
    ("training_s", "training\n(h:mm:ss)", 1),
    ("images_per_s", "speed\n(img/s)", 1),
    ("model/num_params", "params\n(M)", 1e6),
    ("petaflop", "compute\n(petaFLOP)", 1),
)


def tables(sections: Sequence[ComparableGroup], most: int = 50) -> Iterator[Table | str]:
    """Yield what is to be printed, in this order.

    Args:
        most: rows of a section; of the rest it is only said how many there are.
    """
    num_left = [max(0, len(section.rows) - most) for section in sections]
    sections = [replace(section, rows=section.rows[:most]) for section in sections]
    rows = [row for section in sections for row in section.rows]
    keys = list(rows[0].differs) if rows else []
    is_apart = len(keys) > _MAX_KEY_COLUMNS
    titles = Counter(section.title for section in sections)
    for section, left in zip(sections, num_left, strict=True):
        images = f" (fingerprint={section.fingerprint})" if titles[section.title] > 1 else ""
        yield escape(f"{section.title}{images}")
        shown = [key for key in keys if key == "model.name"] if is_apart else keys
        first = rows.index(section.rows[0]) + 1
        yield _figures_table(section.rows, shown, first)
        yield from _weights_told(section.rows, first)
        yield from _older_told(section.rows, first)
        if left:
            yield f"{pluralize(left, 'row')} more, no better: --rows N, --json, or a filter"
    if is_apart:
        yield "what differs, by the number of the row"
        yield _keys_table(rows, keys)
    if len(sections) > 1:
        yield (
            f"These are {len(sections)} tables, each ranked by itself: figures of other images, or "
            "under another protocol, do not compare. `tahoe evaluate RUN... --protocol NAME` "
            "judges runs alike."
        )


def _weights_told(rows: Sequence[RunGroup], first: int) -> Iterator[str]:
    """Say whose figures those of averaged weights are."""
    averaged = [n for n, row in enumerate(rows, first) if row.records[0].weights == "averaged"]
    if len(averaged) == len(rows):
        yield "val: of the averaged weights (EMA)"
    elif averaged:
        yield f"val: of the averaged weights (EMA) in {', '.join(map(str, averaged))}"


def _older_told(rows: Sequence[RunGroup], first: int) -> Iterator[str]:
    """Say which runs are left out."""
    for number, row in enumerate(rows, first):
        if row.older:
            names = escape(", ".join(one.id for one in row.older))
            yield f"left out of {number}, where newer runs have the same seed: {names}"


def _figures_table(rows: Sequence[RunGroup], keys: Sequence[str], first: int) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("#", justify="right")
    shown.add_column("run", overflow="fold", min_width=7)
    for key in keys:
        shown.add_column(_headed(key), overflow="fold", min_width=5)
    present = [figure for figure in _FIGURES if any(figure[0] in row.figures for row in rows)]
    for _, header, _ in present:
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("status", min_width=9)
    for number, row in enumerate(rows, start=first):
        shown.add_row(
            str(number),
            escape(row.name),
            *(escape(row.differs[key]) for key in keys),
            *(_cell(name, row.figures.get(name), unit) for name, _, unit in present),
            _status(row),
        )
    return shown


def _keys_table(rows: Sequence[RunGroup], keys: Sequence[str]) -> Table:
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("key", no_wrap=True)
    for number in range(1, len(rows) + 1):
        shown.add_column(str(number), overflow="fold", min_width=6)
    for key in keys:
        shown.add_row(
            key, *(escape(truncate_json(row.differs[key], _MAX_CHARACTERS)) for row in rows)
        )
    return shown


def _headed(key: str) -> str:
    """Return a dotted key in lines, so that its column may be narrow."""
    return key.replace(".", ".\n")


def _cell(name: str, spread: MeanStd | None, unit: float) -> str:
    if spread is None:
        return ABSENT
    if unit > 1:
        return f"{spread.mean / unit:.2f}"
    mean = format_metric(name, spread.mean)
    return f"{mean} ± {format_metric(name, spread.std)}" if spread.std else mean


def _status(row: RunGroup) -> str:
    counted = Counter(record.status.replace("_", " ") for record in row.records)
    if len(row.records) == 1:
        return next(iter(counted))
    return ", ".join(f"{number} {status}" for status, number in counted.items())
