"""`tahoe shard digits|folder|csv|imagenet|cifar|webdataset|merge|split`: write a data set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.dataset.arguments import (
    URL_HELP,
    num_bytes,
    num_workers_option,
    sample_options,
    sample_rule,
    scratch_option,
    slurm_options,
)
from orchestrator.cli.shared.arguments import (
    PATH,
    POSITIVE,
    SPLIT,
    check_exclusive,
    flag,
    fraction_option,
)
from orchestrator.cli.shared.commands import INTERRUPTED, Command

if TYPE_CHECKING:
    from data_sharding.scanning.scan import ReadOptions
    from data_sharding.sources.base import Source
    from data_sharding.writing.shard_writer import ImageChecks

Call = TypeVar("Call", bound=Callable[..., Any])

_MAX_WORKERS = 8  # more would wait for the disk
_CHECKS = ("max_bad_fraction", "dedupe", "drop_damaged", "bit_depth")
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("out", help="path or fsspec URL to write to"),
    click.option("--seed", type=int, default=0, help="seed of split and order"),
    click.option("--shard-bytes", type=num_bytes, metavar="SIZE", help="the same in bytes: 256MB"),
    num_workers_option(most=_MAX_WORKERS),
    fraction_option("--max-bad-fraction", 0.01, "maximum fraction of dropped images"),
    flag("--dedupe", help="drop training images whose bytes occurred before, or are in val"),
    flag("--drop-damaged", help="drop images that decode with damage, else kept and listed"),
    flag("--no-decode", help="check only the header and the end of each image: much faster"),
    click.option("--bit-depth", type=click.IntRange(9, 15), help="bits in use of 16-bit greys"),
    click.option("--max-side", type=int, metavar="N", help="longer side of shrunk images, pixels"),
    click.option("--short-side", type=int, metavar="N", help="shorter side, instead of that"),
    click.option(
        "--max-megapixels",
        type=POSITIVE,
        metavar="N",
        help="decode whole, to shrink them, images of over 89 megapixels and up to N",
    ),
    click.option("--quality", type=int, default=90, help="JPEG quality of shrunk images"),
    *slurm_options,
)


_val_fraction_option = partial(
    click.option, "--val-fraction", type=float, help="fraction of every class that becomes val"
)
_folds_option = click.option(
    "--folds",
    "num_folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="folds for cross-validation, equal in size and classes, instead of train and val",
)


def _writer(
    samples_per_shard: int = 5000, *, from_shards: bool = False
) -> "Callable[[Callable[..., Source]], Callable[..., int]]":
    """Turn a function that opens a source into one that writes it, with the common options.

    The function takes the arguments that it declares, the seed with `val_fraction`, and for a
    source made of shards the options of reading them.
    """

    def decorate(open_source: "Callable[..., Source]") -> Callable[..., int]:
        @wraps(open_source)
        def write(out: str, seed: int, num_workers: int, **options: Any) -> int:
            jobs = {name: options.pop(name) for name in ("on", "num_parts", "wait")}
            checks = _image_checks(options)
            sizes = {name: options.pop(name) for name in ("samples_per_shard", "shard_bytes")}
            check_exclusive(**sizes)
            if all(size is None for size in sizes.values()):
                sizes["samples_per_shard"] = samples_per_shard
            if "val_fraction" in options:
                options["seed"] = seed
            if from_shards:
                options["num_workers"] = num_workers
            source = (_open_shards if from_shards else _open_images)(open_source, **options)
            if jobs["wait"] and not jobs["on"]:
                raise click.UsageError("--wait needs --on.")
            if jobs["on"]:
                jobs["num_workers"] = num_workers
                return _write_by_jobs(source, out, seed, checks, sizes, **jobs)
            return _write(source, out, seed, checks, num_workers=num_workers, **sizes)

        size_option = click.option(
            "--samples-per-shard",
            type=int,
            show_default=str(samples_per_shard),
            help="maximum size of a shard",
        )
        call: Callable[..., int] = write
        for option in reversed((*_OPTIONS, size_option, *[scratch_option] * from_shards)):
            call = option(call)
        return call

    return decorate


def _write(
    opened: "AbstractContextManager[Source]",
    url: str,
    seed: int,
    checks: "ImageChecks",
    **settings: Any,
) -> int:
    """Write a source to a URL; return the exit code."""
    from data_sharding.writing.dataset_writer import is_published, write_dataset
    from orchestrator.cli.dataset import write_render

    try:
        with opened as source:
            if checks.shrink and not is_published(url):
                write_render.print_resize_trial(checks.shrink, source, seed)
            with write_render.progress_bars(source) as update:
                dataset = write_dataset(
                    source,
                    url,
                    seed=seed,
                    checks=checks,
                    on_progress=partial(update, "writing"),
                    on_hashing=partial(update, "hashing"),
                    **settings,
                )
    except KeyboardInterrupt:
        write_render.print_interrupted(url)
        return INTERRUPTED
    write_render.print_summary(url, source, dataset)
    return 0


def _write_by_jobs(
    opened: "AbstractContextManager[Source]",
    out: str,
    seed: int,
    checks: "ImageChecks",
    sizes: dict[str, int | None],
    *,
    on: Sequence[str],
    **settings: Any,
) -> int:
    """Write a source to a URL by jobs of Slurm, unless it is there; return the exit code."""
    from data_sharding.writing.dataset_writer import is_published
    from data_sharding.writing.shard_tasks import WriteSettings
    from orchestrator.cli.dataset import write_jobs

    jobs = write_jobs.jobs_of(out, on)
    if is_published(jobs.url):
        return _write(opened, out, seed, checks, num_workers=settings["num_workers"], **sizes)
    return write_jobs.write(jobs, opened, WriteSettings(seed, checks=checks, **sizes), **settings)


@contextmanager
def _open_images(open_source: "Callable[..., Source]", **options: Any) -> "Iterator[Source]":
    yield open_source(**options)


@contextmanager
def _open_shards(
    open_source: "Callable[..., Source]", num_workers: int, scratch: str | None, **options: Any
) -> "Iterator[Source]":
    """Open a source made of shards; keep copies of remote ones as long as it is open."""
    from data_sharding.scanning.scan import ReadOptions
    from orchestrator.cli.dataset.render import progress_bar

    with TemporaryDirectory(prefix="tahoe-scratch-", dir=scratch) as directory:
        with progress_bar("reading", total=None) as on_progress:
            reading = ReadOptions(Path(directory), num_workers, on_progress)
            source = open_source(reading=reading, **options)
        yield source


def _image_checks(options: dict[str, Any]) -> "ImageChecks":
    """Take the options of the checks out of all."""
    from data_sharding.image.resize import ResizeSettings
    from data_sharding.writing.shard_writer import ImageChecks

    sides = {name: options.pop(name) for name in ("max_side", "short_side")}
    quality, no_decode = options.pop("quality"), options.pop("no_decode")
    max_megapixels = options.pop("max_megapixels")
    checks = {name: options.pop(name) for name in _CHECKS}
    check_exclusive(**sides)
    check_exclusive(drop_damaged=checks["drop_damaged"], no_decode=no_decode)
    is_shrinking = any(side is not None for side in sides.values())
    if max_megapixels and not is_shrinking:
        raise click.UsageError("--max-megapixels needs --max-side or --short-side.")
    settings = {**sides, "quality": quality, "max_megapixels": max_megapixels}
    shrink = ResizeSettings(**settings) if is_shrinking else None
    return ImageChecks(shrink=shrink, decode=not no_decode, **checks)


@click.command(cls=Command)
@_val_fraction_option(default=0.2)
@_writer(samples_per_shard=500)
def digits(val_fraction: float, seed: int) -> "Source":
    """Write scikit-learn's 1,797 handwritten digits."""
    from data_sharding.sources import digits as source

    return source.digits(val_fraction, seed)


@click.command(cls=Command)
@click.argument("directory", type=PATH, metavar="DIR", help="directory of class directories")
@_val_fraction_option()
@_folds_option
@flag("--follow-links", help="open linked directories below the classes")
@flag("--allow-empty", help="keep classes without training images")
@fraction_option("--max-passed-over", 0.1, "maximum fraction of skipped files, if images")
@_writer()
def folder(
    directory: Path,
    val_fraction: float | None,
    num_folds: int | None,
    seed: int,
    follow_links: bool,
    allow_empty: bool,
    max_passed_over: float,
) -> "Source":
    """Write DIR/{train,val}/CLASS/* or DIR/CLASS/*."""
    from data_sharding.sources import folder as source

    limits = source.FolderOptions(follow_links, allow_empty, max_passed_over)
    return source.folder(directory, val_fraction, seed, limits, num_folds=num_folds)


def _parse_delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise click.BadParameter(f"{text!r} is neither one character nor tab.")
    return delimiter


@click.command(cls=Command)
@click.argument("file", type=PATH, help="CSV file whose first row names the columns")
@click.option("--root", type=PATH, metavar="DIR", help="base of the paths (default: that of FILE)")
@click.option("--val", type=PATH, metavar="FILE", help="CSV file of the validation images")
@_val_fraction_option()
@_folds_option
@click.option("--path-column", default="path", metavar="NAME", help="header of the paths")
@click.option("--label-column", default="label", metavar="NAME", help="header of the labels")
@click.option("--delimiter", type=_parse_delimiter, metavar="CHAR", help="a character or tab")
@click.option("--multi-label", metavar="SEP", help="separator of the labels of an image")
@flag("--no-labels", help="images without labels")
@_writer()
def csv(
    file: Path,
    path_column: str,
    label_column: str,
    multi_label: str | None,
    no_labels: bool,
    delimiter: str | None,
    val: Path | None,
    **settings: Any,
) -> "Source":
    """Write the images that a CSV file lists."""
    from data_sharding.sources.csv_file import Columns, csv_file

    check_exclusive(multi_label=multi_label, no_labels=no_labels)
    columns = Columns(path_column, None if no_labels else label_column, multi_label, delimiter)
    return csv_file(file, columns, val_path=val, **settings)


def _archive_option(name: str, file: str) -> Callable[[Call], Call]:
    return click.option(name, type=PATH, required=True, metavar="FILE", help=file)


@click.command(cls=Command)
@_archive_option("--train", "ILSVRC2012_img_train.tar")
@_archive_option("--val", "ILSVRC2012_img_val.tar")
@_archive_option("--devkit", "ILSVRC2012_devkit_t12.tar.gz")
@flag("--subset", help="accept smaller archives, with other counts and digests")
@_writer()
def imagenet(train: Path, val: Path, devkit: Path, subset: bool) -> "Source":
    """Write ImageNet from its archives."""
    from data_sharding.sources import imagenet as source
    from orchestrator.cli.dataset.render import progress_bar

    num_bytes = sum(path.stat().st_size for path in (train, val, devkit) if path.exists())
    with progress_bar("checking", total=num_bytes >> 20, unit="MB") as on_checked:
        archives = source.Archives(train, val, devkit)
        return source.imagenet(archives, is_subset=subset, on_checked=on_checked)


@click.command(cls=Command)
@click.argument("archive", type=PATH, help="cifar-10-binary.tar.gz or cifar-100-binary.tar.gz")
@_writer()
def cifar(archive: Path) -> "Source":
    """Write CIFAR-10 or CIFAR-100 from its archive."""
    from data_sharding.sources import cifar as source

    return source.cifar(archive)


@click.command(cls=Command)
@click.argument(
    "urls", nargs=-1, required=True, metavar="URL...", help="shards ({00..99} or *), directories"
)
@click.option("--val", multiple=True, metavar="URL", help="shards for validation (repeatable)")
@_val_fraction_option()
@_folds_option
@sample_options
@flag("--relabel", help="number the labels from 0 on, where they start at 1 or have gaps")
@_writer(from_shards=True)
def webdataset(
    urls: tuple[str, ...],
    val: tuple[str, ...],
    image: str | None,
    class_map: str | None,
    label: str | None,
    multi_label: bool,
    classes: Path | None,
    reading: "ReadOptions",
    **settings: Any,
) -> "Source":
    """Write a data set from existing shards."""
    from data_sharding.format.class_map import read_class_map
    from data_sharding.sources.shards import from_webdataset
    from data_sharding.tools.index import read_class_names

    check_exclusive(class_map=class_map, relabel=settings["relabel"])
    return from_webdataset(
        urls,
        sample_rule(image, label, multi_label=multi_label),
        reading,
        val_urls=val,
        classes=read_class_names(classes) if classes else None,
        class_map=read_class_map(class_map) if class_map else None,
        **settings,
    )


@click.command(cls=Command)
@click.argument("urls", nargs=-1, required=True, metavar="URL...", help=URL_HELP)
@flag("--union-classes", help="allow different classes; labels follow their names")
@_writer(from_shards=True)
def merge(urls: tuple[str, ...], union_classes: bool, reading: "ReadOptions") -> "Source":
    """Write one data set from several."""
    from data_sharding.sources import shards

    return shards.merge(urls, reading, union_classes=union_classes)


@click.command(cls=Command)
@click.argument("url", help=URL_HELP)
@_val_fraction_option()
@_folds_option
@click.option("--split", type=SPLIT, help="the only split to take samples from")
@_writer(from_shards=True)
def split(url: str, split: str | None, reading: "ReadOptions", **settings: Any) -> "Source":
    """Write a data set with a new validation split, or in folds."""
    from data_sharding.sources.shards import resplit

    return resplit(url, split, reading, **settings)
