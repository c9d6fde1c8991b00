"""What a check has found."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class CheckResult:
    """One line: whether it is well, of what, and what was found; if it is not well, the remedy."""

    status: Literal["ok", "warn", "fail"]
    name: str
    message: str


def run_check(
    what: str, check: Callable[[], str], errors: tuple[type[Exception], ...]
) -> CheckResult:
    """Return what a check says, or as a failure what it raises."""
    try:
        return CheckResult("ok", what, check())
    except errors as error:
        return CheckResult("fail", what, str(error))


def show(findings: Iterable[CheckResult]) -> None:
    """Print a line for each, as it comes."""
    console = Console(soft_wrap=True, highlight=False)
    for one in findings:
        level = Text(f"{one.status:5}", style=_STYLES[one.status])
        console.print(level + Text(f"{one.name:16}{one.message}"))


def all_passed(findings: Sequence[CheckResult]) -> bool:
    """Return whether nothing has failed."""
    return all(one.status != "fail" for one in findings)
