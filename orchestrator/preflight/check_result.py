"""The result of one check of `tahoe doctor`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.text import Text

from data_sharding.errors import UserError
from slurm.errors import SlurmError

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
CHECK_ERRORS = (UserError, SlurmError)


@dataclass(frozen=True)
class CheckResult:
    """One line of the report; the message of a check that fails ends with the remedy."""

    status: Literal["ok", "warn", "fail"]
    name: str
    message: str


def run_check(name: str, check: Callable[[], str]) -> CheckResult:
    """Run a check that returns a message or raises one of CHECK_ERRORS."""
    try:
        return CheckResult("ok", name, check())
    except CHECK_ERRORS as error:
        return CheckResult("fail", name, str(error))


def print_results(results: Iterable[CheckResult]) -> None:
    """Print one line for each result, as it comes."""
    console = Console(soft_wrap=True, highlight=False)
    for result in results:
        status = Text(f"{result.status:5}", style=_STYLES[result.status])
        console.print(status + Text(f"{result.name:16}{result.message}"))
