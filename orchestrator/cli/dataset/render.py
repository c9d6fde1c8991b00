"""What the verbs on data sets print: progress, tables, JSON."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from data_sharding.errors import DataError
from data_sharding.format.manifest import SPLITS, Manifest
from data_sharding.tools.stats import PERCENTILES, Stats
from data_sharding.tools.verify import Problem, VerifyReport
from orchestrator.json_output import strict_json

_MAX_ROWS = 50
_MAX_NAMES = 10


@contextmanager
def progress(
    doing: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; yield what is to be called with the number of units done."""
    console = Console(stderr=True)
    left = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TextColumn(unit), left, console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done: bar.update(task, completed=done)


def index(
    url: str,
    manifests: Mapping[str, Manifest],
    counts: Mapping[str, Counter[str]],
    *,
    is_written: bool,
    has_other: bool,
) -> None:
    """Say what was found, whether manifests were written, and whether a split is lacking."""
    how = "has its manifests now" if is_written else "had these manifests already; they fit"
    console = _console()
    console.print(Text(f"{url} {how}"))
    table = _table("split", "shards", "samples", "MB", "classes", "labels")
    for split in _ordered(manifests):
        manifest = manifests[split]
        table.add_row(split, *_size(manifest), _num(len(manifest.classes)), str(manifest.labels))
    console.print(table)
    for split in _ordered(counts):
        _tell_empty(console, split, [name for name, num in counts[split].items() if not num])
    missing = [split for split in SPLITS if split not in manifests]
    if missing and not has_other:
        console.print(
            Text(
                f"Only {', '.join(manifests)} was indexed, and a run needs train and val: index "
                f"{missing[0]} too, or let Tahoe choose it: `tahoe shard split {url} OUT "
                "--val-fraction 0.1`."
            )
        )


def print_verify_report(found: VerifyReport) -> None:
    """Print what was checked and all that is wrong, with a remedy for each kind."""
    console = _console()
    table = _table("split", "shards", "samples", "MB", "wrong")
    for split, manifest in found.manifests.items():
        wrong = sum(problem.split == split for problem in found.problems)
        table.add_row(split, *_size(manifest), _num(wrong))
    console.print(Text(found.url))
    console.print(table)
    for split, remark in found.remarks:
        console.print(Text(f"{split}: {remark}"))
    if not found.problems:
        console.print("All of it is as its manifests say.")
        return
    numbers = {remedy: n for n, remedy in enumerate(_remedies(found.problems), start=1)}
    table = _table("shard", "sample", "what is wrong", "remedy", left=3)
    for problem in found.problems[:_MAX_ROWS]:
        where = "/".join(filter(None, (problem.split, problem.shard)))
        table.add_row(*map(Text, (where, problem.key, problem.message, str(numbers[problem.fix]))))
    console.print(table)
    if len(found.problems) > _MAX_ROWS:
        console.print(f"{len(found.problems) - _MAX_ROWS:,} more: --json lists all.\n")
    for remedy, number in numbers.items():
        console.print(Text(f"{number}  {remedy}"))


def print_verify_report_json(found: VerifyReport) -> None:
    """Print the same for programs."""
    _print_json(
        {
            "url": found.url,
            "ok": not found.problems,
            "splits": {split: _facts(manifest) for split, manifest in found.manifests.items()},
            "problems": [dataclasses.asdict(problem) for problem in found.problems],
            "remarks": [{"split": split, "what": what} for split, what in found.remarks],
        }
    )


def stats(url: str, manifests: Mapping[str, Manifest], found: Mapping[str, Stats]) -> None:
    """Print the numbers of a data set, a column for each split."""
    console = _console()
    console.print(Text(url))
    table = _table("", *found, left=1)
    rows = {split: _stat_rows(stats) for split, stats in found.items()}
    for name in next(iter(rows.values())):
        table.add_row(name, *(rows[split][name] for split in rows))
    console.print(table)
    for split, mine in found.items():
        classes = manifests[split].classes
        empty = np.flatnonzero(mine.samples_per_class == 0).tolist()
        _tell_empty(console, split, [classes[i] for i in empty])
        if mine.num_unreadable:
            console.print(
                f"{split}: samples that cannot be read: {mine.num_unreadable:,}; "
                "`tahoe shard verify` names them."
            )
    split, first = next(iter(found.items()))
    if first.mean:
        console.print(
            f"Mean and deviation of {first.num_measured:,} images of {split}, to be pasted:"
        )
        console.print(Text(f"  {first.override}"))


def stats_json(url: str, manifests: Mapping[str, Manifest], found: Mapping[str, Stats]) -> None:
    """Print the same for programs, with the samples of every class."""
    splits = {}
    for split, mine in found.items():
        fields = (field.name for field in dataclasses.fields(mine))
        values = {name: getattr(mine, name) for name in fields if name != "first_labels"}
        per_class = zip(manifests[split].classes, mine.samples_per_class.tolist(), strict=True)
        splits[split] = {**values, "samples_per_class": dict(per_class), "override": mine.override}
    _print_json({"url": url, "percentiles": PERCENTILES, "splits": splits})


def save(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as a PNG and say so.

    Raises:
        DataError: it cannot be written.
    """
    try:
        sheet.save(path, "png")
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}. There is no picture: give another "
            "path with -o."
        ) from error
    _console().print(Text(f"{path} is written: {sheet.width} x {sheet.height} pixels"))


def _stat_rows(mine: Stats) -> dict[str, str]:
    per_class = mine.samples_per_class
    counts = (per_class.min(), int(np.median(per_class)), per_class.max()) if len(per_class) else ()
    return {
        "shards": _num(mine.num_shards),
        "samples": _num(mine.num_samples),
        "MB": f"{mine.num_bytes / 1e6:,.1f}",
        "classes": _num(len(per_class)),
        "samples a class: least, median, most": ", ".join(map(_num, counts)),
        "width in pixels: 1 %, median, 99 %": ", ".join(f"{x:,.0f}" for x in mine.widths),
        "height in pixels: 1 %, median, 99 %": ", ".join(f"{x:,.0f}" for x in mine.heights),
        "bits a pixel: 1 %, median, 99 %": ", ".join(f"{x:,.2f}" for x in mine.bits_per_pixel),
        "formats": _shares(mine.formats),
        "modes": _shares(mine.modes),
        "mean": ", ".join(f"{x:.4f}" for x in mine.mean),
        "std": ", ".join(f"{x:.4f}" for x in mine.std),
    }


def _shares(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {num:,}" for name, num in counts.most_common())


def _tell_empty(console: Console, split: str, empty: list[str]) -> None:
    if empty:
        more = f" and {len(empty) - _MAX_NAMES:,} more" if len(empty) > _MAX_NAMES else ""
        names = ", ".join(empty[:_MAX_NAMES])
        console.print(Text(f"{split}: classes without samples: {names}{more}"))


def _remedies(problems: tuple[Problem, ...]) -> list[str]:
    return list(dict.fromkeys(problem.fix for problem in problems))


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "num_shards": len(manifest.shards),
        "num_samples": manifest.num_samples,
        "num_bytes": manifest.num_bytes,
    }


def _size(manifest: Manifest) -> tuple[str, str, str]:
    megabytes = f"{manifest.num_bytes / 1e6:,.1f}"
    return _num(len(manifest.shards)), _num(manifest.num_samples), megabytes


def _num(value: int) -> str:
    return f"{value:,}"


def _ordered(by_split: Mapping[str, Any]) -> list[str]:
    return sorted(by_split, key=SPLITS.index)


def _table(*headers: str, left: int = 1) -> Table:
    """Return a table whose first columns are words, and whose others are numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        is_number = number >= left
        table.add_column(header, justify="right" if is_number else "left", overflow="fold")
    return table


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)


def _print_json(values: Any) -> None:
    print(strict_json(values))
