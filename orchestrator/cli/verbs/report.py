"""`tahoe report`: published beside measured, as a page and as figures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import add_from_mlflow, add_runs_dir, add_verb
from orchestrator.json_output import strict_json
from orchestrator.number_format import pluralize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.tracking.records.record import Record

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add_report_verb(verbs: "Verbs") -> None:
    text = "draw errors over years, compute, parameters and time, published beside measured"
    verb = add_verb(verbs, "report", report, text)
    words_help = "runs, as for compare (default: all)"
    verb.add_argument("words", nargs="*", metavar="RUN|KEY=VALUE", help=words_help)
    add_runs_dir(verb)
    add_from_mlflow(verb)
    data_help = "the data set (default: the one with most runs)"
    verb.add_argument("--data", metavar="NAME", help=data_help)
    protocol_help = "of measured errors, or a pattern (default: the one that most runs have)"
    verb.add_argument("--protocol", metavar="NAME", help=protocol_help)
    output_help = "where the files go (default: %(default)s)"
    verb.add_argument(
        "-o", "--output", type=Path, default=Path("report"), metavar="DIR", help=output_help
    )
    send_help = "also keep it in MLflow, in the run 'report on NAME'"
    verb.add_argument("--send", action="store_true", help=send_help)
    uri_help = "of that MLflow (default: --from-mlflow, or else sqlite:///mlflow.db)"
    verb.add_argument("--uri", help=uri_help)
    verb.add_argument("--experiment", default="tahoe", metavar="NAME", help="default: %(default)s")
    verb.add_argument("--json", action="store_true", help="print the points, and draw nothing")


def report(options: argparse.Namespace) -> int:
    """Write the page."""
    from collections import Counter

    from orchestrator.cli.verbs.select_runs import all_runs, select_runs
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.records.catalog import load_catalog
    from orchestrator.tracking.records.provenance import provenance_edges
    from orchestrator.tracking.records.record import IMPORTED
    from orchestrator.tracking.reports.report import report as told_of

    runs = options.runs.absolute()
    store = options.from_mlflow
    found = select_runs(options.words, runs, store) if options.words else all_runs(runs, store)
    records = [one for one in found if one.status != IMPORTED]  # which others have measured
    names = Counter(str(one.config.get("data.name")) for one in records)
    data = options.data or (names.most_common(1)[0][0] if names else "imagenet")
    told = told_of(records, load_catalog(), data, options.protocol)
    if not told.points:
        raise RunError(f"nothing is published of {data} and no run has its figures: an empty page.")
    if options.protocol and not told.measured:
        others = ", ".join(told.other_protocols) or "none"
        raise RunError(
            f"no run was judged on {data} under {options.protocol}. Protocols of runs: {others}."
        )
    if options.json:
        print(strict_json(told.to_dict()))
        return 0
    from orchestrator.tracking.reports.page import write_report

    drawn = {one.id for section in told.sections for row in section.rows for one in row.records}
    family = [link for link in provenance_edges(records) if {link.child, link.parent} & drawn]
    try:
        page, *figures = write_report(told, family, options.output, _curves(store))
    except OSError as error:
        raise RunError(f"the report was not written: {error}. Name a directory: -o DIR.") from error
    print(f"{page}: {len(told.published)} published, {len(told.measured)} measured on {data}")
    if told.other_images:
        others = " or ".join(f"fingerprint={one}" for one in told.other_images)
        print(f"other images called {data} are left out: draw them with {others}")
    if figures:
        print(f"{pluralize(len(figures) // 2, 'figure')} beside it, as PNG and SVG")
    if options.send:
        _send(options, data, [page, *figures])
    return 0


def _curves(tracking_uri: str | None) -> "Callable[[Record, str], dict[int, float]]":
    if tracking_uri is None:
        from orchestrator.tracking.reports.curves import logged

        return logged
    from orchestrator.tracking.mlflow_store.mlflow_records import metric_history

    return metric_history(tracking_uri)


def _send(options: argparse.Namespace, data: str, files: "Sequence[Path]") -> None:
    from orchestrator.redact import one_line_error
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.mlflow_store.client import MlflowException
    from orchestrator.tracking.mlflow_store.report_run import send_report

    try:
        uri = options.uri or options.from_mlflow or "sqlite:///mlflow.db"
        run_id = send_report(files, data, uri, options.experiment)
    except (MlflowException, OSError) as error:
        raise RunError(f"the report is not in MLflow: {one_line_error(error)}") from error
    print(f"in MLflow: the run {run_id}, 'report on {data}'")
