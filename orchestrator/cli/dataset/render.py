"""Output of the verbs that inspect a data set: progress, tables, JSON."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from data_sharding.format.manifest import SPLITS, Manifest
from data_sharding.io.text import truncated_list
from data_sharding.tools.stats import PERCENTILES, Stats
from data_sharding.tools.verify import VerifyReport
from orchestrator.cli.dataset import proposal
from orchestrator.cli.shared.hints import translate
from orchestrator.console import make_console, make_table, print_json, print_table

_MAX_ROWS = 50
_MAX_NAMES = 10


def make_progress(*columns: ProgressColumn) -> Progress:
    """Create progress bars that end with some columns; they are shown on a terminal only."""
    console = make_console(stderr=True)
    first = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*first, *columns, console=console, disable=not console.is_terminal)


@contextmanager
def progress_bar(
    name: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show a bar; yield a callback for the number of units processed so far."""
    time = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    with make_progress(TextColumn(unit), time) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.update(task, completed=done)


def print_index(
    url: str,
    manifests: Mapping[str, Manifest],
    counts: Mapping[str, Counter[str]],
    *,
    is_written: bool,
    has_other: bool,
) -> None:
    """Print the new manifests, or that equal ones exist, and whether a split is missing."""
    console = make_console()
    state = "now has its manifests" if is_written else "already has these manifests"
    console.print(Text(f"{url} {state}"))
    table = make_table("split", "shards", "samples", "MB", "classes", "labels")
    splits = [split for split in SPLITS if split in manifests]
    for split in splits:
        manifest = manifests[split]
        table.add_row(split, *_size(manifest), f"{len(manifest.classes):,}", str(manifest.labels))
    print_table(table)
    kinds = {manifests[split].shards[0].digest for split in splits} - {"whole"}
    if kinds:
        labels = "start, middle and end" if "sampled" in kinds else "labels and some other bytes"
        console.print(
            f"Shards are identified by their size, {labels}: later changes elsewhere that keep "
            "the size are not noticed. `--read whole` reads and identifies every byte."
        )
    for split in splits:
        _print_empty(split, [name for name, num in counts[split].items() if not num])
    missing = [split for split in SPLITS if split not in manifests]
    if missing and not has_other:
        text = (
            f"Only {', '.join(manifests)} was indexed, and a run needs train and val: index "
            f"{missing[0]} too, or choose a validation split: `tahoe shard split {url} OUT "
            "--val-fraction 0.1`."
        )
        console.print(Text(text))


def print_verify_report(report: VerifyReport) -> None:
    """Print the checked splits and all problems, with a remedy for each kind."""
    console, problems = make_console(), report.problems
    table = make_table("split", "shards", "samples", "MB", "wrong")
    for split, manifest in report.manifests.items():
        num_wrong = sum(problem.split == split for problem in problems)
        table.add_row(split, *_size(manifest), f"{num_wrong:,}")
    console.print(Text(str(report.location)))
    print_table(table)
    for split, remark in report.remarks:
        console.print(Text(f"{split}: {remark}"))
    if not problems:
        console.print("Everything is as the manifests describe it.")
        return
    fixes = list(dict.fromkeys(problem.fix for problem in problems))
    table = make_table("shard", "sample", "problem", "remedy", num_text=3)
    for problem in problems[:_MAX_ROWS]:
        shard = "/".join(filter(None, (problem.split, problem.shard)))
        fix = str(fixes.index(problem.fix) + 1)
        table.add_row(*map(Text, (shard, problem.key, problem.message, fix)))
    print_table(table)
    if len(problems) > _MAX_ROWS:
        console.print(f"{len(problems) - _MAX_ROWS:,} more: --json lists all.\n")
    command = click.get_current_context().command
    for number, fix in enumerate(fixes, start=1):
        console.print(Text(f"{number}  {translate(fix, command)}"))


def print_verify_report_json(report: VerifyReport) -> None:
    """Print the same as JSON, with all problems."""
    splits = {
        split: {
            "num_shards": len(manifest.shards),
            "num_samples": manifest.num_samples,
            "num_bytes": manifest.num_bytes,
        }
        for split, manifest in report.manifests.items()
    }
    values = {
        "url": str(report.location),
        "ok": not report.problems,
        "splits": splits,
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
        "remarks": [{"split": split, "message": text} for split, text in report.remarks],
    }
    print_json(values)


def print_stats(
    url: str,
    manifests: Mapping[str, Manifest],
    stats: Mapping[str, Stats],
    config: proposal.Values | None,
) -> None:
    """Print the statistics of a data set, a column for each split, and its proposed config."""
    console = make_console()
    console.print(Text(url))
    table = make_table("", *stats)
    rows = {split: _stats_rows(split_stats) for split, split_stats in stats.items()}
    for name in next(iter(rows.values())):
        table.add_row(name, *(rows[split][name] for split in rows))
    print_table(table)
    for split, split_stats in stats.items():
        classes = manifests[split].classes
        empty = np.flatnonzero(split_stats.samples_per_class == 0).tolist()
        _print_empty(split, [classes[i] for i in empty])
        if split_stats.num_unreadable:
            console.print(
                f"{split}: unreadable samples: {split_stats.num_unreadable:,}; `tahoe shard "
                "verify` names them."
            )
    split, first = next(iter(stats.items()))
    if first.mean:
        console.print(f"Overrides with mean and std of {first.num_measured:,} {split} images:")
        console.print(Text(f"  {_overrides(first)}"))
    if config:
        file = f"conf/data/{config['name']}.yaml"
        console.print(
            Text(f"Config for `{proposal.train_command(config)}`, which `-o {file}` writes:")
        )
        print(proposal.to_yaml(config), end="")


def print_stats_json(
    url: str,
    manifests: Mapping[str, Manifest],
    stats: Mapping[str, Stats],
    config: proposal.Values | None,
) -> None:
    """Print the same as JSON, with the samples of every class."""
    splits = {}
    for split, split_stats in stats.items():
        values = {
            field.name: getattr(split_stats, field.name) for field in dataclasses.fields(Stats)
        }
        del values["first_labels"]
        counts = split_stats.samples_per_class.tolist()
        values["samples_per_class"] = dict(zip(manifests[split].classes, counts, strict=True))
        splits[split] = {**values, "override": _overrides(split_stats)}
    print_json({"url": url, "percentiles": PERCENTILES, "splits": splits, "config": config})


def _overrides(split_stats: Stats) -> str:
    """Return the config overrides that normalise images by these numbers."""
    mean, std = (",".join(f"{x:.4f}" for x in xs) for xs in (split_stats.mean, split_stats.std))
    channels = "data.in_channels=1 " if len(split_stats.mean) == 1 else ""
    return f"{channels}data.mean=[{mean}] data.std=[{std}]"


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet as a PNG."""
    with proposal.writing(path):
        sheet.save(path, "png")
    make_console().print(Text(f"wrote {path}: {sheet.width} x {sheet.height} pixels"))


def _stats_rows(stats: Stats) -> dict[str, str]:
    counts = stats.samples_per_class
    spread = (counts.min(), int(np.median(counts)), counts.max()) if len(counts) else ()
    return {
        "shards": f"{stats.num_shards:,}",
        "samples": f"{stats.num_samples:,}",
        "MB": f"{stats.num_bytes / 1e6:,.1f}",
        "classes": f"{len(counts):,}",
        "samples per class: min, median, max": _join(spread, ","),
        "width in pixels: 1 %, median, 99 %": _join(stats.widths, ",.0f"),
        "height in pixels: 1 %, median, 99 %": _join(stats.heights, ",.0f"),
        "bits per pixel: 1 %, median, 99 %": _join(stats.bits_per_pixel, ",.2f"),
        "formats": ", ".join(f"{name} {num:,}" for name, num in stats.formats.most_common()),
        "modes": ", ".join(f"{name} {num:,}" for name, num in stats.modes.most_common()),
        "mean": _join(stats.mean, ".4f"),
        "std": _join(stats.std, ".4f"),
    }


def _join(values: Iterable[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _print_empty(split: str, names: list[str]) -> None:
    if names:
        text = f"{split}: classes without samples: {truncated_list(names, _MAX_NAMES)}"
        make_console().print(Text(text))


def _size(manifest: Manifest) -> tuple[str, str, str]:
    megabytes = f"{manifest.num_bytes / 1e6:,.1f}"
    return f"{len(manifest.shards):,}", f"{manifest.num_samples:,}", megabytes
