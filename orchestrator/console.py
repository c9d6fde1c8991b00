"""Output of the verbs in one look: rich tables for people, strict JSON for programs."""

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNBOUNDED = 10_000  # columns of a table that no terminal bounds


def strict_json(value: Any) -> str:
    """Format JSON that any reader accepts: without NaN and infinity, which become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def strict_json_line(value: Any) -> str:
    """Format strict JSON on one line."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(value: Any) -> None:
    """Print strict JSON."""
    print(strict_json(value))


def make_console(*, stderr: bool = False) -> "Console":
    """Create a console that leaves text as it is, without wrapping or highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def make_table(*headers: str, num_text: int = 1, **settings: Any) -> "Table":
    """Create an empty table.

    Args:
        num_text: number of the leading columns that hold text and may be folded; the others hold
            numbers, are aligned to the right and never cut.
        settings: keyword arguments of rich's `Table`.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, **settings)
    for number, header in enumerate(headers):
        if number < num_text:
            table.add_column(header, overflow="fold")
        else:
            table.add_column(header, justify="right", no_wrap=True)
    return table


def print_table(table: "Table") -> None:
    """Print a table; on a narrow terminal its text is folded, and numbers are never cut."""
    console = make_console()
    terminal_width, console.width = console.width, _UNBOUNDED
    if sys.stdout.isatty():
        for column in table.columns:
            if column.no_wrap:
                cells = (column.header, *column.cells)
                column.min_width = max(console.measure(cell).maximum for cell in cells)
        console.width = max(terminal_width, console.measure(table).minimum)
    console.print(table)
