"""Arguments and options that several commands share, and their types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.shared.commands import complete_overrides

Call = TypeVar("Call", bound=Callable[..., Any])

PATH = click.Path(path_type=Path, readable=False)  # commands check it themselves
POSITIVE = click.IntRange(min=1)
SPLIT = click.Choice(("train", "val"))
WEIGHTS = click.Choice(("ema", "raw"))
HYDRA_FLAGS = {"ignore_unknown_options": True}  # settings of a command that passes them to Hydra


def flag(*names: str, help: str) -> Callable[[Call], Call]:  # noqa: A002
    """Add an option without a value."""
    return click.option(*names, is_flag=True, help=help)


def fraction_option(name: str, default: float | None, help: str) -> Callable[[Call], Call]:  # noqa: A002
    """Add an option whose value is a fraction."""
    return click.option(name, type=float, default=default, metavar="FRACTION", help=help)


run_argument = click.argument("run", type=PATH, help="run directory")
runs_argument = click.argument(
    "runs", nargs=-1, required=True, type=PATH, metavar="RUN...", help="run or sweep directories"
)
runs_dir_option = click.option(
    "--runs-dir", type=PATH, default="runs", metavar="DIR", help="directory of the runs"
)
from_mlflow_option = click.option(
    "--from-mlflow", metavar="URI", help="MLflow store to read instead of directories"
)
json_option = flag("--json", "as_json", help="output as JSON")


def overrides_argument(help: str, metavar: str = "[OVERRIDES]...") -> Callable[[Call], Call]:  # noqa: A002
    """Add Hydra's overrides, which are passed on untouched."""
    return click.argument(
        "overrides",
        nargs=-1,
        type=click.UNPROCESSED,
        metavar=metavar,
        help=help,
        shell_complete=complete_overrides,
    )


def check_exclusive(**options: object) -> None:
    """Raise a usage error if more than one of some options is given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other.")
