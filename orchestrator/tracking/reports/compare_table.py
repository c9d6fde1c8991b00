"""Render compared runs as tables for a terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.markup import escape
from rich.table import Table

from orchestrator.console import make_table
from orchestrator.metrics import VAL_METRICS, column_header
from orchestrator.number_format import format_metric, pluralize
from orchestrator.redact import truncate_json
from orchestrator.tracking.reports.compare import ABSENT, ComparableGroup, MeanStd, RunGroup

_MAX_CHARACTERS = 24  # of a value in the table of differences
_MAX_KEY_COLUMNS = 3  # beside the metrics; more keys get a table of their own
_METRICS = (  # name, header, unit
    *((name, column_header(name), 1) for name in VAL_METRICS),
    ("training_s", "training\n(h:mm:ss)", 1),
    ("images_per_s", "speed\n(img/s)", 1),
    ("model/num_params", "params\n(M)", 1e6),
    ("petaflop", "compute\n(petaFLOP)", 1),
)


def tables(sections: Sequence[ComparableGroup], max_rows: int = 50) -> Iterator[Table | str]:
    """Yield tables and lines, in the order of printing.

    Args:
        max_rows: the number of rows to show of a section.
    """
    hidden = [max(0, len(section.rows) - max_rows) for section in sections]
    sections = [replace(section, rows=section.rows[:max_rows]) for section in sections]
    rows = [row for section in sections for row in section.rows]
    keys = list(rows[0].differs) if rows else []
    has_key_table = len(keys) > _MAX_KEY_COLUMNS
    titles = Counter(section.title for section in sections)
    for section, num_hidden in zip(sections, hidden, strict=True):
        images = f" (fingerprint={section.fingerprint})" if titles[section.title] > 1 else ""
        yield escape(f"{section.title}{images}")
        columns = [key for key in keys if key == "model.name"] if has_key_table else keys
        first = rows.index(section.rows[0]) + 1
        yield _metrics_table(section.rows, columns, first)
        yield from _weights_note(section.rows, first)
        yield from _older_note(section.rows, first)
        if num_hidden:
            rest = pluralize(num_hidden, "more row")
            yield f"{rest}, ranked lower: use --limit N, --json or a filter"
    if has_key_table:
        yield "differences, by the number of the row"
        yield _keys_table(rows, keys)
    if len(sections) > 1:
        yield (
            f"These are {len(sections)} tables, each ranked by itself: metrics on different images "
            "or under different protocols do not compare. `tahoe evaluate RUN... --protocol NAME` "
            "evaluates runs alike."
        )


def _weights_note(rows: Sequence[RunGroup], first: int) -> Iterator[str]:
    """Yield the rows whose metrics are those of averaged weights."""
    averaged = [n for n, row in enumerate(rows, first) if row.records[0].weights == "averaged"]
    if len(averaged) == len(rows):
        yield "val: of the averaged weights (EMA)"
    elif averaged:
        yield f"val: of the averaged weights (EMA) in {', '.join(map(str, averaged))}"


def _older_note(rows: Sequence[RunGroup], first: int) -> Iterator[str]:
    for number, row in enumerate(rows, first):
        if row.older:
            names = escape(", ".join(record.id for record in row.older))
            yield f"left out of {number}, where newer runs have the same seed: {names}"


def _metrics_table(rows: Sequence[RunGroup], keys: Sequence[str], first: int) -> Table:
    table = make_table("#", num_text=0, collapse_padding=True)
    table.add_column("run", overflow="fold", min_width=7)
    for key in keys:
        table.add_column(key.replace(".", ".\n"), overflow="fold", min_width=5)
    present = [metric for metric in _METRICS if any(metric[0] in row.metrics for row in rows)]
    for _, header, _ in present:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("status", min_width=9)
    for number, row in enumerate(rows, start=first):
        table.add_row(
            str(number),
            escape(row.name),
            *(escape(row.differs[key]) for key in keys),
            *(_cell(name, row.metrics.get(name), unit) for name, _, unit in present),
            _status(row),
        )
    return table


def _keys_table(rows: Sequence[RunGroup], keys: Sequence[str]) -> Table:
    table = make_table(collapse_padding=True)
    table.add_column("key", no_wrap=True)
    for number in range(1, len(rows) + 1):
        table.add_column(str(number), overflow="fold", min_width=6)
    for key in keys:
        table.add_row(
            key, *(escape(truncate_json(row.differs[key], _MAX_CHARACTERS)) for row in rows)
        )
    return table


def _cell(name: str, value: MeanStd | None, unit: float) -> str:
    if value is None:
        return ABSENT
    if unit > 1:
        return f"{value.mean / unit:.2f}"
    mean = format_metric(name, value.mean)
    return f"{mean} ± {format_metric(name, value.std)}" if value.std else mean


def _status(row: RunGroup) -> str:
    counted = Counter(record.status.replace("_", " ") for record in row.records)
    if len(row.records) == 1:
        return next(iter(counted))
    return ", ".join(f"{number} {status}" for status, number in counted.items())
