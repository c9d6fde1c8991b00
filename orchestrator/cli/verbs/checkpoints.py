"""`tahoe ckpt ls|verify|prune|export`: the checkpoints of a run, looked at and taken out."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from orchestrator.cli.shared.arguments import add_verb, at_least_2
from orchestrator.json_output import strict_json
from orchestrator.number_format import pluralize

if TYPE_CHECKING:
    from orchestrator.checkpoint.store import CheckpointStore
    from orchestrator.config.schema import Checkpoint

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

_UNBOUNDED = 1000  # columns, where no terminal bounds them


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint as `ls` shows it."""

    step: int
    num_bytes: int
    metrics: dict[str, float]
    kept_as: str
    saved: str
    url: str


def add_ckpt_verbs(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    ls = _add(verbs, "ls", _ls, "list the checkpoints of a run")
    ls.add_argument("--json", action="store_true", help="for programs")

    verify = _add(verbs, "verify", _verify, "read checkpoints whole and compare their digests")
    verify.add_argument("--step", type=int, help="only this one")

    prune = _add(verbs, "prune", _prune, "remove checkpoints that the run's config does not keep")
    prune.add_argument("--keep-last", type=at_least_2, metavar="N", help="instead of the config's")
    prune.add_argument("--dry-run", action="store_true", help="only say which")

    export = _add(verbs, "export", _export, "copy the weights out as one safetensors file")
    export.add_argument("output", metavar="FILE", help="a path or any fsspec URL")
    export.add_argument("--step", type=int, help="default: the best, or the newest if none is")
    weights_help = "averaged or as trained (default: averaged, where there are any)"
    export.add_argument("--weights", choices=("ema", "raw"), help=weights_help)


def _add(
    verbs: "Verbs", name: str, call: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    verb = add_verb(verbs, name, call, text)
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    return verb


def _ls(options: argparse.Namespace) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    store, keep = _open(options.run)
    listed = _checkpoint_rows(store, keep)
    if options.json:
        print(strict_json([asdict(one) for one in listed]))
        return 0
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "MB", "saved", "kept as", "evaluated"):
        justify: Literal["right", "left"] = "right" if name in ("step", "MB") else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for one in listed:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in one.metrics.items())
        megabytes = f"{one.num_bytes / 1e6:,.1f}"
        table.add_row(f"{one.step:,}", megabytes, one.saved, one.kept_as, figures)
    width = None if sys.stdout.isatty() else _UNBOUNDED
    Console(width=width).print(table)
    print(f"in {store.url}")
    return 0


def _checkpoint_rows(store: "CheckpointStore", keep: "Checkpoint") -> list[CheckpointRow]:
    from data_sharding.io import filesystem
    from orchestrator.checkpoint.retention import best_checkpoint, steps_to_keep
    from orchestrator.checkpoint.store import MANIFEST

    manifests = store.manifests()
    best, stay = best_checkpoint(manifests, keep), steps_to_keep(manifests, keep)
    last = {one.step for one in manifests[-keep.keep_last :]}
    listed = []
    for one in manifests:
        roles = ["last"] * (one.step in last) + ["best"] * (one is best)
        role = ", ".join(roles) or ("every n-th" if one.step in stay else "to be pruned")
        where = store.location(one.step)
        saved = f"{filesystem.modified(filesystem.join(where, MANIFEST)):%Y-%m-%d %H:%M}"
        listed.append(CheckpointRow(one.step, one.num_bytes, one.metrics, role, saved, where))
    return listed


def _verify(options: argparse.Namespace) -> int:
    from orchestrator.checkpoint.store import CheckpointError

    store, _ = _open(options.run)
    num_damaged = 0
    for step in store.steps() if options.step is None else [options.step]:
        try:
            with store.open(step) as parts:
                megabytes = store.manifest(step).num_bytes / 1e6
                told = f"{pluralize(len(parts), 'file')}, {megabytes:,.1f} MB, as they were saved"
        except CheckpointError as error:
            num_damaged += 1
            told = f"DAMAGED: {error}"
        print(f"step {step:,}: {told}", flush=True)
    return 1 if num_damaged else 0


def _prune(options: argparse.Namespace) -> int:
    from orchestrator.checkpoint.owner import claim
    from orchestrator.checkpoint.retention import steps_to_keep
    from orchestrator.config.parse import parse
    from orchestrator.run.rundir import RunDir

    store, keep = _open(options.run)
    if options.keep_last:
        keep = replace(cast("Any", keep), keep_last=options.keep_last)
    run = RunDir(options.run)
    with run.lock():  # an attempt that is running prunes by itself
        claim(run, parse(run.read_config()))
        manifests = store.manifests()
        stay = steps_to_keep(manifests, keep)
        if options.dry_run:
            gone = [one.step for one in manifests if one.step not in stay]
        else:
            gone = store.prune(stay) if manifests else []
    told = ", ".join(f"{step:,}" for step in gone) or "none"
    print(f"{'would be removed' if options.dry_run else 'removed'}: {told}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from data_sharding.io import filesystem
    from orchestrator.checkpoint.retention import select_checkpoint
    from orchestrator.run.rundir import RunError

    store, keep = _open(options.run)
    manifest = select_checkpoint(store, keep, options.step)
    step = manifest.step
    name = manifest.weights_file(options.weights)
    if filesystem.exists(options.output):
        raise RunError(f"{options.output} is there already. Remove it, or give another name.")
    with store.open(step, [name]) as parts:
        filesystem.copy(parts[name], options.output)
    print(f"{name} of step {step:,}: {options.output}")
    return 0


def _open(path: Path) -> "tuple[CheckpointStore, Checkpoint]":
    """Return the checkpoints of a run, and what is kept of them."""
    from orchestrator.checkpoint.store import CheckpointStore
    from orchestrator.config.parse import parse
    from orchestrator.run.rundir import RunDir

    run = RunDir(path)
    config = parse(run.read_config())
    return CheckpointStore.for_run(run, config), config.checkpoint
