"""`tahoe ckpt ls|verify|prune|export`: the checkpoints of a run."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from orchestrator.cli.shared.arguments import WEIGHTS, flag, json_option, run_argument
from orchestrator.cli.shared.commands import Group
from orchestrator.console import make_table, print_json, print_table
from orchestrator.number_format import pluralize

if TYPE_CHECKING:
    from orchestrator.checkpoint.store import CheckpointStore
    from orchestrator.config.schema import Checkpoint


@dataclass(frozen=True)
class CheckpointRow:
    """A checkpoint as `ls` lists it."""

    step: int
    num_bytes: int
    metrics: dict[str, float]
    kept_as: str
    saved: str
    url: str


@click.group(cls=Group)
def ckpt() -> None:
    """List, verify, prune and export the checkpoints of a run."""


@ckpt.command()
@run_argument
@json_option
def ls(run: Path, as_json: bool) -> None:
    """List the checkpoints of a run."""
    store, keep = _open(run)
    rows = _checkpoint_rows(store, keep)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    table = make_table("step", "MB", num_text=0)
    for header in ("saved", "kept as", "evaluated"):
        table.add_column(header, no_wrap=True)
    for row in rows:
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in row.metrics.items())
        megabytes = f"{row.num_bytes / 1e6:,.1f}"
        table.add_row(f"{row.step:,}", megabytes, row.saved, row.kept_as, metrics)
    print_table(table)
    print(f"in {store.url}")


def _checkpoint_rows(store: "CheckpointStore", keep: "Checkpoint") -> list[CheckpointRow]:
    from data_sharding.io import filesystem
    from orchestrator.checkpoint.retention import best_checkpoint, steps_to_keep
    from orchestrator.checkpoint.store import MANIFEST

    manifests = store.manifests()
    best, kept_steps = best_checkpoint(manifests, keep), steps_to_keep(manifests, keep)
    last = {manifest.step for manifest in manifests[-keep.keep_last :]}
    rows = []
    for manifest in manifests:
        step = manifest.step
        roles = ["last"] * (step in last) + ["best"] * (manifest is best)
        role = ", ".join(roles) or ("every n-th" if step in kept_steps else "to be pruned")
        url = store.location(step)
        saved = f"{filesystem.modified(filesystem.join(url, MANIFEST)):%Y-%m-%d %H:%M}"
        rows.append(CheckpointRow(step, manifest.num_bytes, manifest.metrics, role, saved, url))
    return rows


@ckpt.command()
@run_argument
@click.option("--step", type=int, help="step of the only checkpoint to read")
def verify(run: Path, step: int | None) -> int:
    """Read checkpoints completely and compare their digests."""
    from orchestrator.checkpoint.store import CheckpointError

    store, _ = _open(run)
    num_damaged = 0
    for checked in store.steps() if step is None else [step]:
        try:
            with store.open(checked) as files:
                megabytes = store.manifest(checked).num_bytes / 1e6
                result = f"{pluralize(len(files), 'file')}, {megabytes:,.1f} MB, as they were saved"
        except CheckpointError as error:
            num_damaged += 1
            result = f"DAMAGED: {error}"
        print(f"step {checked:,}: {result}", flush=True)
    return 1 if num_damaged else 0


@ckpt.command()
@run_argument
@click.option(
    "--keep-last",
    type=click.IntRange(min=2),  # the newest may be damaged
    metavar="N",
    help="number of newest checkpoints to keep (default: the config's)",
)
@flag("--dry-run", help="list them and remove nothing")
def prune(run: Path, keep_last: int | None, dry_run: bool) -> None:
    """Remove checkpoints that the run's config does not keep."""
    from orchestrator.checkpoint.owner import claim
    from orchestrator.checkpoint.retention import steps_to_keep
    from orchestrator.config.parse import parse
    from orchestrator.run.rundir import RunDir

    store, keep = _open(run)
    if keep_last:
        keep = replace(cast("Any", keep), keep_last=keep_last)
    run_dir = RunDir(run)
    with run_dir.lock():  # a running attempt prunes by itself
        claim(run_dir, parse(run_dir.read_config()))
        manifests = store.manifests()
        kept_steps = steps_to_keep(manifests, keep)
        if dry_run:
            removed = [manifest.step for manifest in manifests if manifest.step not in kept_steps]
        else:
            removed = store.prune(kept_steps) if manifests else []
    steps = ", ".join(f"{step:,}" for step in removed) or "none"
    print(f"{'would be removed' if dry_run else 'removed'}: {steps}")


@ckpt.command()
@run_argument
@click.argument("output", metavar="FILE", help="path or fsspec URL to write to")
@click.option("--step", type=int, help="step of the checkpoint (default: the best, or newest)")
@click.option("--weights", type=WEIGHTS, help="averaged or raw weights (default: averaged, if any)")
def export(run: Path, output: str, step: int | None, weights: str | None) -> None:
    """Copy the weights to a single safetensors file."""
    from data_sharding.io import filesystem
    from orchestrator.checkpoint.retention import select_checkpoint
    from orchestrator.run.rundir import RunError

    store, keep = _open(run)
    manifest = select_checkpoint(store, keep, step)
    file = manifest.weights_file(cast("Any", weights))
    if filesystem.exists(output):
        raise RunError(
            f"{output} exists already", value=output, hint="Remove it, or use another name."
        )
    with store.open(manifest.step, [file]) as files:
        filesystem.copy(files[file], output)
    print(f"{file} of step {manifest.step:,}: {output}")


def _open(path: Path) -> "tuple[CheckpointStore, Checkpoint]":
    """Open the checkpoints of a run; return the rules of their retention, too."""
    from orchestrator.checkpoint.store import CheckpointStore
    from orchestrator.config.parse import parse
    from orchestrator.run.rundir import RunDir

    run = RunDir(path)
    config = parse(run.read_config())
    return CheckpointStore.for_run(run, config), config.checkpoint
