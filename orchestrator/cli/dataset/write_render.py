"""Output of the verbs that write a data set: progress, a trial of smaller images, findings."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from data_sharding.image.resize import ResizeSettings
from data_sharding.sources.base import Source
from data_sharding.writing.dataset_writer import Dataset
from data_sharding.writing.journal import REPORT
from data_sharding.writing.resize_trial import ResizeTrial, measure_resize
from orchestrator.cli.dataset.render import make_progress
from orchestrator.console import make_console, make_table, print_table
from orchestrator.number_format import pluralize

_MAX_NAMES = 5


@contextmanager
def progress_bars(source: Source) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each task; yield a callback for its name, the images processed and all.

    Rates count from the first call; MB/s are of image files read, at their mean size if known.
    """
    num_bytes = sum(int(sizes.sum()) for sizes in source.num_bytes.values())
    bytes_per_image = num_bytes / max(sum(map(len, source.splits.values())), 1)
    tasks: dict[str, tuple[TaskID, float, int]] = {}  # with start time and start count
    with make_progress(TextColumn("{task.fields[rate]}"), TimeRemainingColumn()) as progress:

        def update(name: str, done: int, total: int) -> None:
            now_s = time.monotonic()
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total, rate=""), now_s, done
            task, start_s, num_before = tasks[name]
            per_s = (done - num_before) / max(now_s - start_s, 1e-3)
            rate = f"{per_s:,.0f} images/s"
            if bytes_per_image:
                rate += f" {per_s * bytes_per_image / 1e6:,.1f} MB/s"
            progress.update(task, completed=done, total=total, rate=rate)

        yield update


def print_resize_trial(shrink: ResizeSettings, source: Source, seed: int) -> None:
    """Shrink some images and print the effect."""
    trial, console = measure_resize(shrink, source, seed), make_console()
    if trial.num_huge:
        num = pluralize(trial.num_huge, "training image")
        console.print(f"No trial of shrinking {num} of over 89 megapixels, which is slow.")
    elif not trial.num_images:
        console.print("None of the training images drawn by the seed can be decoded.")
    if trial.num_images and not trial.num_shrunk:
        drawn = pluralize(trial.num_images, "training image")
        console.print(f"None of {drawn}, drawn by the seed, is above the requested size.")
    elif trial.num_shrunk:
        console.print(
            f"{trial.num_shrunk} of {trial.num_images} training images, drawn by the seed, are too "
            "large. The effect of shrinking on all of these:"
        )
        print_table(_trial_table(trial))


def print_interrupted(url: str, *, jobs_go_on: bool = False) -> None:
    """Print that the writing was interrupted and can be continued, or that its jobs go on."""
    text = f"interrupted: nothing is published at {url}. The same command continues."
    if jobs_go_on:
        text = f"interrupted: the jobs go on that write {url}. The same command shows them again."
    make_console(stderr=True).print(Text(text))


def print_summary(url: str, source: Source, dataset: Dataset) -> None:
    """Print the size of a data set and all findings."""
    console = make_console()
    state = "exists already and is kept" if dataset.reused else "is written"
    console.print(Text(f"{url} {state}"))
    for split, manifest in sorted(dataset.manifests.items()):
        console.print(
            f"  {split}: {pluralize(manifest.num_samples, 'image')} of "
            f"{pluralize(len(manifest.classes), 'class')} in "
            f"{pluralize(len(manifest.shards), 'shard')}, {manifest.num_bytes / 1e6:.1f} MB"
        )
    if num_folds := next(iter(dataset.manifests.values())).num_folds:
        console.print(
            f"  data.fold=0 (to {num_folds - 1}) validates on that fold, trains on others"
        )
    for note in source.notes:
        console.print(Text(f"  {note}"))
    if source.skipped.counts:
        console.print(f"  skipped files: {source.skipped.counts.total():,}")
    for kind, num in sorted(source.skipped.counts.items()):
        names = source.skipped.names[kind][:_MAX_NAMES]
        more = f" and {num - len(names):,} more" if num > len(names) else ""
        console.print(Text(f"    {kind}: {num:,} ({', '.join(names)}{more})"))
    if dataset.report and dataset.report["rules"]:
        _print_findings(console, dataset.report)
    for warning in dataset.report["warnings"] if dataset.report else ():
        console.print(Text(f"warning: {warning}", style="bold yellow"))


def _print_findings(console: Console, report: Mapping[str, Any]) -> None:
    console.print(f"  findings in {report['num_files']:,} image files (all are in {REPORT}):")
    for rule, finding in report["rules"].items():
        count = f"{finding['count']:,} ({finding['share']:.2%})"
        console.print(Text(f"  {rule}: {count} {finding['meaning']}"))
        for name in finding["names"][:_MAX_NAMES]:
            console.print(Text(f"    {name}"))
        if len(finding["names"]) > _MAX_NAMES:
            console.print(f"    and {finding['count'] - _MAX_NAMES:,} more")
    if "shrunk" in report["rules"]:
        before, after = report["num_bytes"] / 1e6, report["num_bytes_stored"] / 1e6
        console.print(f"  image files: {before:,.1f} MB read, {after:,.1f} MB stored")


def _trial_table(trial: ResizeTrial) -> Table:
    table = make_table("", "before", "after", "ratio")
    kb_before, kb_after = (
        num_bytes / 1e3 / trial.num_images for num_bytes in (trial.bytes_before, trial.bytes_after)
    )
    for name, before, after in (
        ("kB per image", kb_before, kb_after),
        ("images/s decoded, 1 thread", trial.rate_before, trial.rate_after),
    ):
        ratio = f"{after / before:.2f}" if before else "-"
        table.add_row(name, f"{before:,.1f}", f"{after:,.1f}", ratio)
    table.add_row("difference by JPEG, of 255: max", "", f"{trial.max_difference}", "")
    table.add_row("mean", "", f"{trial.mean_difference:.2f}", "")
    return table
