"""`tahoe evaluate`: runs judged again under any protocol, each alone and all as an ensemble."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.shared.arguments import add_runs, add_verb
from orchestrator.json_output import strict_json
from orchestrator.metrics import METRICS, RESULTS
from orchestrator.number_format import format_metric, pluralize

if TYPE_CHECKING:
    from orchestrator.run.rundir import RunDir

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_WORST = 10  # classes that are shown


def add_evaluate_verb(verbs: "Verbs") -> None:
    text = "judge the weights of runs, alone and as an ensemble"
    verb = add_verb(verbs, "evaluate", evaluate, text)
    add_runs(verb)
    protocol_help = (
        "e.g. ten-crop-224-of-256; dense-256-384-512: whole images, one at a time; timm: what timm "
        "judges by (default: each run's own)"
    )
    verb.add_argument("--protocol", metavar="NAME", help=protocol_help)
    verb.add_argument("--data", metavar="URL", help="another data set of the same classes")
    verb.add_argument("--split", choices=("train", "val"), default="val")
    verb.add_argument("--step", type=int, help="of the checkpoint (default: the best, or newest)")
    weights_help = "averaged or as trained (default: averaged, where there are any)"
    verb.add_argument("--weights", choices=("ema", "raw"), help=weights_help)
    verb.add_argument("--batch-size", type=int, metavar="N", help="default: each run's own")
    bad_help = "of the images may be unreadable (default: each run's data.max_bad_fraction)"
    verb.add_argument("--max-bad-fraction", type=float, metavar="SHARE", help=bad_help)
    real_help = "also against the reassessed labels of ImageNet (ReaL)"
    verb.add_argument("--real", action="store_true", help=real_help)
    verb.add_argument("--classes", action="store_true", help="show the classes that fare worst")
    neuron_help = "of a network without labels: its best neuron as a detector of this class"
    verb.add_argument("--neuron", metavar="CLASS", help=neuron_help)
    confusion_help = "write what was taken for what: a table, or pairs if classes are over 1,000"
    verb.add_argument("--confusion", type=Path, metavar="CSV", help=confusion_help)
    verb.add_argument("--json", action="store_true", help="for programs")


def evaluate(options: argparse.Namespace) -> int:
    """Print what runs achieve, and note it in their directories."""
    from orchestrator.run.sweepdir import expand_sweeps

    runs = expand_sweeps(options.runs)
    for run in runs:
        run.read_config()  # says so if there is no run
    if options.neuron:
        return _find_neurons(options, [str(run.path) for run in runs])
    if options.confusion:
        _check_writable(options.confusion.absolute())  # before minutes go by
    opinion = _judge(options, [str(run.path) for run in runs])
    noted = {"time_ms": time.time_ns() // 1_000_000, "split": options.split}
    if opinion["ensemble"]:
        noted["ensemble"] = {"runs": [run.id for run in runs], **opinion["ensemble"]}
    kept = [run for run in runs if _keep(run, {**opinion["runs"][str(run.path)], **noted})]
    if options.json:
        print(strict_json(opinion))
    else:
        _show(opinion, is_worst_shown=options.classes)
    for note in opinion["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for run in kept:
        _send(run)
    return 0


def _check_writable(table: Path) -> None:
    from orchestrator.run.rundir import RunError

    if not os.access(table if table.exists() else table.parent, os.W_OK):
        raise RunError(f"--confusion {table} cannot be written. Nothing was judged; name another.")


def _keep(run: "RunDir", judged: dict[str, Any]) -> bool:
    """Note what was found, if this user may; otherwise it is only printed."""
    from orchestrator.run.rundir import append_json_line

    try:
        append_json_line(run.evaluations_file, judged)
    except OSError as error:
        print(
            f"not kept, and not in MLflow: {run.evaluations_file} cannot be written: "
            f"{error.strerror}. Whoever the run belongs to can judge it again.",
            file=sys.stderr,
        )
        return False
    return True


def _send(run: "RunDir") -> None:
    """Let MLflow know, if that can be done now; otherwise the next shipper of the run does."""
    from orchestrator.run.rundir import RunError
    from orchestrator.tracking.shipping.shipper import sync

    if (run.read_config().get("tracking") or {}).get("enabled") and run.mlflow_file.exists():
        try:
            sync(run.path, wait_s=0)
        except (RunError, OSError) as error:
            print(f"not in MLflow yet: {error}", file=sys.stderr)


def _judge(options: argparse.Namespace, runs: list[str]) -> dict[str, Any]:
    confusion = options.confusion
    request = {
        "runs": runs,
        "protocol": options.protocol,
        "batch_size": options.batch_size,
        "real": options.real,
        "confusion": None if confusion is None else str(confusion.absolute()),
        "weights": options.weights,
        "max_bad_fraction": options.max_bad_fraction,
    }
    return _ask("evaluation.evaluate_runs", options, request)


def _find_neurons(options: argparse.Namespace, runs: list[str]) -> int:
    """Print the best neuron of each run."""
    found = {}
    for run in runs:
        found[run] = _ask("evaluation.best_neuron", options, {"run": run, "target": options.neuron})
    if options.json:
        print(strict_json(found))
        return 0
    for run, one in found.items():
        print(
            f"{Path(run).name}, step {one['step']}: neuron {one['neuron']} of "
            f"{one['num_neurons']:,} is right for {one['accuracy']:.2f} % of {one['num_images']:,} "
            f"images, {one['num_targets']:,} of them {options.neuron}; always the same answer for "
            f"{one['constant']:.2f} %"
        )
    return 0


def _ask(module: str, options: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    from orchestrator.launch.torch_subprocess import run_torch_worker

    what = {"data": options.data, "split": options.split, "step": options.step}
    answer: dict[str, Any] = run_torch_worker(module, request | what)
    return answer


def _show(opinion: dict[str, Any], *, is_worst_shown: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("run", overflow="fold")
    for header in ("step", *(METRICS[name].heading for name in RESULTS)):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("weights")
    table.add_column("protocol", no_wrap=True)
    for path, one in opinion["runs"].items():
        name = escape(Path(path).name)
        table.add_row(name, str(one["step"]), *_cells(one), one["weights"], one["protocol"])
    if opinion["ensemble"]:
        table.add_row("all together", "", *_cells(opinion["ensemble"]), "", "")
    Console(soft_wrap=True, highlight=False).print(table)
    unreadable = opinion["num_unreadable"]
    wrong = f", of which {unreadable} could not be read and count as wrong" if unreadable else ""
    print(f"{pluralize(opinion['num_samples'], 'image')}{wrong}")
    if is_worst_shown:
        told = zip(opinion["classes"], opinion["class_top1"], strict=True)
        known = sorted((top1, name) for name, top1 in told if top1 is not None)
        print("worst classes, top-1 in %:")
        for top1, name in known[:_WORST]:
            print(f"  {top1:6.2f}  {name}")


def _cells(figures: dict[str, Any]) -> list[str]:
    return [format_metric(name, figures[name]) for name in RESULTS]
