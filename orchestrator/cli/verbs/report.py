"""`tahoe report`: published and measured results, as a page and as figures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from orchestrator.cli.shared.arguments import (
    PATH,
    flag,
    from_mlflow_option,
    json_option,
    runs_dir_option,
)
from orchestrator.cli.shared.commands import Command
from orchestrator.console import print_json
from orchestrator.number_format import pluralize


@click.command(cls=Command)
@click.argument(
    "words",
    nargs=-1,
    metavar="[RUN|KEY=VALUE]...",
    help="runs, as for `tahoe compare` (default: all)",
)
@runs_dir_option
@from_mlflow_option
@click.option("--data", metavar="NAME", help="data set (default: the one with most runs)")
@click.option(
    "--protocol",
    metavar="NAME",
    help="evaluation protocol of the runs, or a pattern (default: that of most runs)",
)
@click.option(
    "-o", "--output", type=PATH, default="report", metavar="DIR", help="directory of the report"
)
@flag("--log-to-mlflow", help="also log it to the run 'report on NAME'")
@click.option("--uri", help="that MLflow store (default: --from-mlflow, or sqlite:///mlflow.db)")
@click.option("--experiment", default="tahoe", metavar="NAME", help="MLflow experiment")
@json_option
def report(
    words: tuple[str, ...],
    runs_dir: Path,
    from_mlflow: str | None,
    data: str | None,
    protocol: str | None,
    output: Path,
    log_to_mlflow: bool,
    uri: str | None,
    experiment: str,
    as_json: bool,
) -> None:
    """Draw published and measured errors.

    A page and figures: errors over years, compute, parameters and time.
    """
    from orchestrator.cli.verbs.select_runs import all_runs, curve_reader, select_runs
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.records.catalog import load_catalog
    from orchestrator.tracking.records.provenance import provenance_edges
    from orchestrator.tracking.records.record import IMPORTED
    from orchestrator.tracking.reports.report import report as make_report

    runs_dir = runs_dir.absolute()
    runs = select_runs(words, runs_dir, from_mlflow) if words else all_runs(runs_dir, from_mlflow)
    records = [run for run in runs if run.status != IMPORTED]  # others have measured those
    names = Counter(str(record.config.get("data.name")) for record in records)
    data = data or (names.most_common(1)[0][0] if names else "imagenet")
    results = make_report(records, load_catalog(), data, protocol)
    if not results.points:
        raise RunError(f"no result on {data} is published or measured: no report", value=data)
    if protocol and not results.measured:
        protocols = ", ".join(results.other_protocols) or "none"
        raise RunError(
            f"no run was evaluated on {data} under {protocol}",
            value=protocol,
            hint=f"Protocols of the runs: {protocols}.",
        )
    if as_json:
        print_json(results.to_dict())
        return
    from orchestrator.tracking.reports.page import write_report

    drawn = {run.id for section in results.sections for row in section.rows for run in row.records}
    edges = [edge for edge in provenance_edges(records) if {edge.child, edge.parent} & drawn]
    try:
        page, *figures = write_report(results, edges, output, curve_reader(from_mlflow))
    except OSError as error:
        raise RunError(
            f"the report was not written: {error}", value=output, hint="Use another -o DIR."
        ) from error
    print(f"{page}: {len(results.published)} published, {len(results.measured)} measured on {data}")
    if results.other_images:
        filters = " or ".join(f"fingerprint={images}" for images in results.other_images)
        print(f"other images called {data} are left out: draw them with {filters}")
    if figures:
        print(f"{pluralize(len(figures) // 2, 'figure')} beside it, as PNG and SVG")
    if log_to_mlflow:
        uri = uri or from_mlflow or "sqlite:///mlflow.db"
        _log_to_mlflow([page, *figures], data, uri, experiment)


def _log_to_mlflow(files: Sequence[Path], data: str, uri: str, experiment: str) -> None:
    from orchestrator.redact import one_line_error
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.mlflow_store.client import MlflowException
    from orchestrator.tracking.mlflow_store.report_run import send_report

    try:
        run_id = send_report(files, data, uri, experiment)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"the report is not in MLflow: {one_line_error(error)}", value=uri
        ) from error
    print(f"in MLflow: the run {run_id}, 'report on {data}'")
