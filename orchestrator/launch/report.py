"""`tahoe report`: published beside measured, as a page and as figures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.figures import counted
from orchestrator.launch.arguments import add_from_mlflow, add_runs_dir, add_verb
from orchestrator.launch.json_output import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.tracking.record import Record

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

    from orchestrator.rundir import RunError
    from orchestrator.tracking.ancestry import links
    from orchestrator.tracking.choose import choose, everything
    from orchestrator.tracking.lineage import shelf
    from orchestrator.tracking.record import IMPORTED
    from orchestrator.tracking.report import report as told_of

    runs = options.runs.absolute()
    store = options.from_mlflow
    found = choose(options.words, runs, store) if options.words else everything(runs, store)
    records = [one for one in found if one.status != IMPORTED]  # which others have measured
    names = Counter(str(one.config.get("data.name")) for one in records)
    data = options.data or (names.most_common(1)[0][0] if names else "imagenet")
    told = told_of(records, shelf(), data, options.protocol)
    if not told.points:
        raise RunError(f"nothing is published of {data} and no run has its figures: an empty page.")
    if options.protocol and not told.measured:
        others = ", ".join(told.passed_over) or "none"
        raise RunError(
            f"no run was judged on {data} under {options.protocol}. Protocols of runs: {others}."
        )
    if options.json:
        print(strict_json(told.to_dict()))
        return 0
    from orchestrator.tracking.report_page import write_report

    drawn = {one.id for section in told.sections for row in section.rows for one in row.records}
    family = [link for link in links(records) if {link.child, link.parent} & drawn]
    try:
        page, *figures = write_report(told, family, options.output, _curves(store))
    except OSError as error:
        raise RunError(f"the report was not written: {error}. Name a directory: -o DIR.") from error
    print(f"{page}: {len(told.published)} published, {len(told.measured)} measured on {data}")
    if told.other_images:
        others = " or ".join(f"fingerprint={one}" for one in told.other_images)
        print(f"other images called {data} are left out: draw them with {others}")
    if figures:
        print(f"{counted(len(figures) // 2, 'figure')} beside it, as PNG and SVG")
    if options.send:
        _send(options, data, [page, *figures])
    return 0


def _curves(tracking_uri: str | None) -> "Callable[[Record, str], dict[int, float]]":
    if tracking_uri is None:
        from orchestrator.tracking.curves import logged

        return logged
    from orchestrator.tracking.stored import history

    return history(tracking_uri)


def _send(options: argparse.Namespace, data: str, files: "Sequence[Path]") -> None:
    from orchestrator.rundir import RunError
    from orchestrator.tracking.outgoing import summary
    from orchestrator.tracking.report_run import send_report
    from orchestrator.tracking.store import MlflowException

    try:
        uri = options.uri or options.from_mlflow or "sqlite:///mlflow.db"
        run_id = send_report(files, data, uri, options.experiment)
    except (MlflowException, OSError) as error:
        raise RunError(f"the report is not in MLflow: {summary(error)}") from error
    print(f"in MLflow: the run {run_id}, 'report on {data}'")
