"""Terminal output of the verbs: one kind of console and one style of table."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def make_console(*, stderr: bool = False) -> Console:
    """Create a console that leaves text as it is, without wrapping or highlighting."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def make_table(*headers: str, num_text: int = 1) -> Table:
    """Create a table whose first `num_text` columns hold text, and the others numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column, header in enumerate(headers):
        justify = "left" if column < num_text else "right"
        table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table
