"""`tahoe compare`: runs side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import add_from_mlflow, add_runs_dir, add_verb, positive
from orchestrator.json_output import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.tracking.records.record import Record

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_UNBOUNDED = 10_000  # columns: a terminal folds lines that are longer than it is wide


def add_compare_verb(verbs: "Verbs") -> None:
    text = "print in what runs differ and what came out, over seeds"
    verb = add_verb(verbs, "compare", compare, text)
    words_help = "a run or a sweep by its directory, an MLflow id, or a filter like model=resnet*"
    verb.add_argument("words", nargs="*", metavar="RUN|KEY=VALUE", help=words_help)
    add_runs_dir(verb)
    add_from_mlflow(verb)
    rows_help = "how many of each table are printed (default: %(default)s)"
    verb.add_argument("--rows", type=positive, default=50, metavar="N", help=rows_help)
    plot_help = "draw the curves into this file, PNG or SVG"
    verb.add_argument("--plot", type=Path, metavar="FILE", help=plot_help)
    verb.add_argument("--json", action="store_true", help="for programs")


def compare(options: argparse.Namespace) -> int:
    """Print and draw what runs came to."""
    from orchestrator.cli.verbs.select_runs import select_runs
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.reports.compare import compare as compared

    store = options.from_mlflow
    sections = compared(select_runs(options.words, options.runs.absolute(), store))
    if options.json:
        print(strict_json([section.to_dict() for section in sections]))
    else:
        from rich.console import Console

        from orchestrator.tracking.reports.compare_table import tables

        console = Console(soft_wrap=True, highlight=False, width=_UNBOUNDED)  # cuts no number
        for table in tables(sections, options.rows):
            console.print(table)
    if options.plot:
        from orchestrator.tracking.reports.curves import draw_curves, logged

        try:
            draw_curves(sections, options.plot, logged if store is None else _history(store))
        except (OSError, ValueError) as error:
            raise RunError(f"--plot {options.plot}: not drawn: {error}") from error
        print(f"curves: {options.plot}")
    return 0


def _history(tracking_uri: str) -> "Callable[[Record, str], dict[int, float]]":
    from orchestrator.tracking.mlflow_store.mlflow_records import metric_history

    return metric_history(tracking_uri)
