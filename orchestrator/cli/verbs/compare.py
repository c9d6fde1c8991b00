"""`tahoe compare`: runs side by side."""

from pathlib import Path

import click

from orchestrator.cli.shared.arguments import (
    PATH,
    POSITIVE,
    from_mlflow_option,
    json_option,
    runs_dir_option,
)
from orchestrator.cli.shared.commands import Command
from orchestrator.console import make_console, print_json, print_table


@click.command(cls=Command)
@click.argument(
    "words",
    nargs=-1,
    metavar="[RUN|KEY=VALUE]...",
    help="runs or sweeps by directory, MLflow ids, or filters like model=resnet*",
)
@runs_dir_option
@from_mlflow_option
@click.option("--limit", type=POSITIVE, default=50, metavar="N", help="rows of each table")
@click.option("--plot", type=PATH, metavar="FILE", help="PNG or SVG for the learning curves")
@json_option
def compare(
    words: tuple[str, ...],
    runs_dir: Path,
    from_mlflow: str | None,
    limit: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Compare runs: the keys that differ, the results over seeds."""
    from orchestrator.cli.verbs.select_runs import curve_reader, select_runs
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.reports.compare import compare as compare_runs
    from orchestrator.tracking.reports.compare_table import tables

    sections = compare_runs(select_runs(words, runs_dir.absolute(), from_mlflow))
    if as_json:
        print_json([section.to_dict() for section in sections])
    else:
        for item in tables(sections, limit):
            if isinstance(item, str):
                make_console().print(item)
            else:
                print_table(item)
    if plot:
        from orchestrator.tracking.reports.curves import draw_curves

        try:
            draw_curves(sections, plot, curve_reader(from_mlflow))
        except (OSError, ValueError) as error:
            raise RunError(f"--plot {plot}: not drawn: {error}", value=plot) from error
        print(f"curves: {plot}")
