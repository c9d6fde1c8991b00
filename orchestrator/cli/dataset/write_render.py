"""What the verbs that write a data set print: progress, a trial of smaller images, the findings."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from data_sharding.image.resize import ResizeSettings
from data_sharding.sources.base import Source
from data_sharding.writing.dataset_writer import Dataset
from data_sharding.writing.journal import REPORT
from data_sharding.writing.resize_trial import ResizeTrial, measure_resize
from orchestrator.number_format import pluralize

_MAX_NAMES = 5


class ProgressBars:
    """A bar for hashing and one for writing, each from when it begins.

    MB/s are of image files read, at their mean size where that is known.
    """

    def __init__(self, progress: Progress, bytes_per_image: float) -> None:
        self._progress, self._bytes_per_image = progress, bytes_per_image
        self._begun: dict[str, tuple[TaskID, float, int]] = {}

    def on_hashing(self, done: int, total: int) -> None:
        self._update("hashing", done, total)

    def on_writing(self, done: int, total: int) -> None:
        self._update("writing", done, total)

    def _update(self, doing: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if doing not in self._begun:
            task = self._progress.add_task(doing, total=total, rate="")
            self._begun[doing] = task, now_s, done  # those done before count for no rate
        task, start_s, before = self._begun[doing]
        per_s = (done - before) / max(now_s - start_s, 1e-3)
        rate = f"{per_s:,.0f} images/s"
        if self._bytes_per_image:
            rate += f" {per_s * self._bytes_per_image / 1e6:,.1f} MB/s"
        self._progress.update(task, completed=done, total=total, rate=rate)


@contextmanager
def progress(source: Source) -> Iterator[ProgressBars]:
    """Show bars on a terminal."""
    num_bytes = sum(int(sizes.sum()) for sizes in source.num_bytes.values())
    num_images = sum(map(len, source.splits.values()))
    console = _console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    more = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, *more, console=console, disable=not console.is_terminal) as bars:
        yield ProgressBars(bars, num_bytes / max(num_images, 1))


def print_resize_trial(shrink: ResizeSettings, source: Source, seed: int) -> None:
    """Make some images smaller and print what that does to them."""
    found = measure_resize(shrink, source, seed)
    console = _console()
    if not found.num_images:
        console.print("None of the training images drawn by the seed can be decoded.")
        return
    if not found.num_shrunk:
        drawn = pluralize(found.num_images, "training image")
        console.print(f"Of {drawn}, drawn by the seed, none is larger than asked for.")
        return
    console.print(
        f"{found.num_shrunk} of {found.num_images} training images, drawn by the seed, are too "
        "large. What making them smaller does to all of these:"
    )
    console.print(_trial_table(found))


def interrupted(url: str) -> None:
    """Say that the writing was stopped and can be taken up."""
    text = f"stopped: nothing is published at {url}. The same command goes on where it stopped."
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(text))


def print_summary(url: str, source: Source, dataset: Dataset) -> None:
    """Say what a data set holds, and all that was found."""
    console = _console()
    how = "was there already and is kept" if dataset.reused else "is written"
    console.print(Text(f"{url} {how}"))
    for split, manifest in sorted(dataset.manifests.items()):
        console.print(
            f"  {split}: {pluralize(manifest.num_samples, 'image')} of "
            f"{pluralize(len(manifest.classes), 'class')} in "
            f"{pluralize(len(manifest.shards), 'shard')}, {manifest.num_bytes / 1e6:.1f} MB"
        )
    for note in source.notes:
        console.print(Text(f"  {note}"))
    if source.skipped.counts:
        _print_passed_over(console, source)
    if dataset.report and dataset.report["rules"]:
        _print_findings(console, url, dataset.report)
    for warning in (dataset.report or {}).get("warnings", ()):  # older sets have none
        console.print(Text(f"warning: {warning}"))


def _print_passed_over(console: Console, source: Source) -> None:
    console.print(f"  passed over: {source.skipped.counts.total():,}")
    for kind, num in sorted(source.skipped.counts.items()):
        names = [*source.skipped.names.get(kind, ())][:_MAX_NAMES]
        more = f" and {num - len(names):,} more" if names and num > len(names) else ""
        shown = f" ({', '.join(names)}{more})" if names else ""
        console.print(Text(f"    {kind}: {num:,}{shown}"))


def _print_findings(console: Console, url: str, report: Mapping[str, Any]) -> None:
    console.print(Text(f"  found in {report['num_files']:,} image files (all of it in {REPORT}):"))
    for rule, found in report["rules"].items():
        share = f"{found['count']:,} ({found['share']:.2%})"
        console.print(Text(f"  {rule}: {share} {found['meaning']}"))
        for name in found["names"][:_MAX_NAMES]:
            console.print(Text(f"    {name}"))
        if len(found["names"]) > _MAX_NAMES:
            console.print(f"    and {found['count'] - _MAX_NAMES:,} more")
    if "shrunk" in report["rules"]:
        before, after = report["num_bytes"] / 1e6, report["num_bytes_stored"] / 1e6
        console.print(f"  image files: {before:,.1f} MB read, {after:,.1f} MB stored")


def _trial_table(found: ResizeTrial) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for header in ("before", "after", "ratio"):
        table.add_column(header, justify="right")
    rows = {
        "kB an image": (found.bytes_before, found.bytes_after, 1e-3 / max(found.num_images, 1)),
        "images/s decoded, 1 thread": (found.rate_before, found.rate_after, 1),
    }
    for name, (before, after, unit) in rows.items():
        ratio = f"{after / before:.2f}" if before else "-"
        table.add_row(name, f"{before * unit:,.1f}", f"{after * unit:,.1f}", ratio)
    table.add_row("difference by JPEG, of 255: max", "", f"{found.max_difference}", "")
    table.add_row("mean", "", f"{found.mean_difference:.2f}", "")
    return table


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
