"""`tahoe evaluate`: runs evaluated again under any protocol, each alone and as an ensemble."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.shared.arguments import (
    PATH,
    POSITIVE,
    SPLIT,
    WEIGHTS,
    check_exclusive,
    flag,
    fraction_option,
    json_option,
    runs_argument,
)
from orchestrator.cli.shared.commands import Command
from orchestrator.console import make_table, print_json, print_table
from orchestrator.metrics import METRICS, RESULTS
from orchestrator.number_format import format_metric, pluralize

if TYPE_CHECKING:
    from orchestrator.run.rundir import RunDir

_PROTOCOLS = (
    "ten-crop-224-of-256 for one; dense-256-384-512: full images, one at a time; timm: timm's own "
    "(default: that of each run)"
)


@click.command(cls=Command)
@runs_argument
@click.option("--protocol", metavar="NAME", help=f"evaluation protocol: {_PROTOCOLS}")
@click.option(
    "--data", metavar="URL", help="another data set with the same classes, or a pattern of its .tar"
)
@click.option(
    "--class-map",
    metavar="FILE",
    help="classes of the network for the labels of --data, one a line, or rows OLD,NEW (.csv)",
)
@click.option("--split", type=SPLIT, default="val", help="split of the data set")
@click.option("--step", type=int, help="step of the checkpoint (default: the best, or newest)")
@click.option("--weights", type=WEIGHTS, help="averaged or raw weights (default: averaged, if any)")
@click.option("--batch-size", type=int, metavar="N", help="batch size (default: that of each run)")
@fraction_option("--max-bad-fraction", None, "maximum fraction of unreadable images")
@flag("--real-labels", help="also use ImageNet's reassessed labels (ReaL)")
@click.option("--worst-classes", type=POSITIVE, metavar="N", help="number of worst classes shown")
@click.option("--best-neuron", metavar="CLASS", help="class to find the best detecting neuron of")
@click.option("--confusion-matrix", type=PATH, metavar="CSV", help="file for the confusion matrix")
@json_option
def evaluate(
    runs: tuple[Path, ...],
    worst_classes: int | None,
    best_neuron: str | None,
    confusion_matrix: Path | None,
    as_json: bool,
    real_labels: bool,
    class_map: str | None,
    **request: Any,
) -> None:
    """Evaluate the weights of runs, alone and as an ensemble.

    With a class map, predictions are chosen among its classes alone: for ImageNet-A, -R and others.
    The confusion matrix of over 1,000 classes is a list of its pairs. The best neuron is that of a
    network trained without labels.
    """
    from orchestrator.launch.compose import absolute
    from orchestrator.launch.torch_subprocess import run_torch_worker
    from orchestrator.run.sweepdir import expand_sweeps

    check_exclusive(class_map=class_map, real_labels=real_labels, best_neuron=best_neuron)
    run_dirs = expand_sweeps(runs)
    for run in run_dirs:
        run.read_config()  # fails if there is no run
    if best_neuron:
        _find_best_neurons(run_dirs, best_neuron, request, as_json=as_json)
        return
    if confusion_matrix:
        _check_writable(confusion_matrix.absolute())  # before minutes of work
    request |= {
        "runs": [str(run.path) for run in run_dirs],
        "real": real_labels,
        "class_map": absolute(class_map) if class_map else None,
        "confusion": str(confusion_matrix.absolute()) if confusion_matrix else None,
    }
    report: dict[str, Any] = run_torch_worker("evaluation.evaluate_runs:evaluate_runs", request)
    entry = {"time_ms": time.time_ns() // 1_000_000, "split": request["split"]}
    if report["ensemble"]:
        entry["ensemble"] = {"runs": [run.id for run in run_dirs], **report["ensemble"]}
    kept = [run for run in run_dirs if _keep(run, {**report["runs"][str(run.path)], **entry})]
    if as_json:
        print_json(report)
    else:
        _print_report(report, worst_classes or 0)
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for run in kept:
        _sync(run)


def _check_writable(table: Path) -> None:
    from orchestrator.run.rundir import RunError

    if not os.access(table if table.exists() else table.parent, os.W_OK):
        raise RunError(
            f"--confusion-matrix {table} cannot be written; nothing was evaluated",
            value=table,
            hint="Use another file.",
        )


def _keep(run: "RunDir", entry: Mapping[str, Any]) -> bool:
    """Append an evaluation to the run directory if this user may; else it is only printed."""
    from orchestrator.run.rundir import append_json_line

    try:
        append_json_line(run.evaluations_file, entry)
    except OSError as error:
        print(
            f"not kept, and not in MLflow: {run.evaluations_file} cannot be written: "
            f"{error.strerror}. The owner of the run can evaluate it again.",
            file=sys.stderr,
        )
        return False
    return True


def _sync(run: "RunDir") -> None:
    """Send the evaluation to MLflow if possible now; else the run's next shipper does."""
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.shipping.shipper import sync

    if (run.read_config().get("tracking") or {}).get("enabled") and run.mlflow_file.exists():
        try:
            sync(run.path, wait_s=0)
        except (RunError, OSError) as error:
            print(f"not in MLflow yet: {error}", file=sys.stderr)


def _find_best_neurons(
    runs: "list[RunDir]", target: str, request: Mapping[str, Any], *, as_json: bool
) -> None:
    """Print the best neuron of each run."""
    from orchestrator.launch.torch_subprocess import run_torch_worker

    request = {"target": target, **{name: request[name] for name in ("data", "split", "step")}}
    neurons = {
        str(run.path): run_torch_worker(
            "evaluation.best_neuron:find_best_neuron", {"run": str(run.path)} | request
        )
        for run in runs
    }
    if as_json:
        print_json(neurons)
        return
    for run, neuron in neurons.items():
        print(
            f"{Path(run).name}, step {neuron['step']}: neuron {neuron['neuron']} of "
            f"{neuron['num_neurons']:,} is right for {neuron['accuracy']:.2f} % of "
            f"{neuron['num_images']:,} images, {neuron['num_targets']:,} of them {target}; a "
            f"constant prediction for {neuron['constant']:.2f} %"
        )


def _print_report(report: Mapping[str, Any], num_worst: int) -> None:
    from rich.markup import escape

    every = [*report["runs"].values(), report["ensemble"] or {}]
    names = [name for name in RESULTS if any(name in metrics for metrics in every)]
    metric_headers = (METRICS[name].heading for name in names)
    table = make_table("run", "step", *metric_headers, collapse_padding=True)
    for header in ("weights", "protocol"):
        table.add_column(header, no_wrap=True)
    for path, result in report["runs"].items():
        name, cells = escape(Path(path).name), _cells(result, names)
        table.add_row(name, str(result["step"]), *cells, result["weights"], result["protocol"])
    if report["ensemble"]:
        table.add_row("all together", "", *_cells(report["ensemble"], names), "", "")
    print_table(table)
    unreadable = report["num_unreadable"]
    wrong = f", of which {unreadable} could not be read and count as wrong" if unreadable else ""
    passed_over = report["num_passed_over"]
    others = f"; {passed_over:,} of other classes are passed over" if passed_over else ""
    print(f"{pluralize(report['num_samples'], 'image')}{wrong}{others}")
    if (num_chosen := len(report["classes"])) < report["num_outputs"]:
        print(f"predictions are chosen among {num_chosen:,} of {report['num_outputs']:,} classes")
    if num_worst:
        _print_worst_classes(report, num_worst)


def _print_worst_classes(report: Mapping[str, Any], num_worst: int) -> None:
    is_multi = "class_ap" in report
    by_class = zip(report["class_ap" if is_multi else "class_top1"], report["classes"], strict=True)
    known = sorted(pair for pair in by_class if pair[0] is not None)
    print(f"worst classes, {'average precision' if is_multi else 'top-1'} in %:")
    for value, name in known[:num_worst]:
        print(f"  {value:6.2f}  {name}")


def _cells(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [format_metric(name, metrics[name]) for name in names]
