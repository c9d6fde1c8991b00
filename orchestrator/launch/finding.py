"""What a check has found."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line: whether it is well, of what, and what was found; if it is not well, the remedy."""

    level: Literal["ok", "warn", "fail"]
    what: str
    said: str


def found_by(what: str, check: Callable[[], str], errors: tuple[type[Exception], ...]) -> Finding:
    """Return what a check says, or as a failure what it raises."""
    try:
        return Finding("ok", what, check())
    except errors as error:
        return Finding("fail", what, str(error))


def show(findings: Iterable[Finding]) -> None:
    """Print a line for each, as it comes."""
    console = Console(soft_wrap=True, highlight=False)
    for one in findings:
        level = Text(f"{one.level:5}", style=_STYLES[one.level])
        console.print(level + Text(f"{one.what:16}{one.said}"))


def is_well(findings: Sequence[Finding]) -> bool:
    """Return whether nothing has failed."""
    return all(one.level != "fail" for one in findings)
