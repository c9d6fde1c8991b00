"""`tahoe shard digits|folder|csv|imagenet|cifar|webdataset|merge|split`: write a data set."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.cli.dataset.arguments import (
    URL_HELP,
    add_label_options,
    add_num_workers,
    add_scratch,
    label_rule,
    num_bytes,
)

if TYPE_CHECKING:
    from data_sharding.sources.base import Source
    from data_sharding.tools.scan import ReadOptions
    from data_sharding.writing.shard_writer import ImageChecks

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED = 130  # as a shell reports Ctrl-C

_MAX_WORKERS = 8  # more would wait for the disk


class Writer(NamedTuple):
    """A verb that writes a data set; one that reads shards opens its source with ReadOptions."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    open_source: "Callable[..., Source]"
    reads_shards: bool = False
    samples_per_shard: int = 5000


def add_writers(verbs: "Verbs") -> None:
    """Add the verbs that write a data set."""
    for name, writer in _WRITERS.items():
        verb = verbs.add_parser(name, help=writer.help, description=writer.help)
        verb.set_defaults(call=write)
        writer.add_arguments(verb)
        verb.add_argument("url", metavar="OUT", help="path or fsspec URL to write to")
        _add_shard_options(verb, writer.samples_per_shard)
        _add_check_options(verb)


def write(options: argparse.Namespace) -> int:
    """Write the source of a verb to a URL; return the exit code."""
    from data_sharding.writing.dataset_writer import is_published, write_dataset
    from orchestrator.cli.dataset import write_render

    checks, per_shard = _checks(options), options.samples_per_shard
    if per_shard is None and options.shard_bytes is None:
        per_shard = _WRITERS[options.verb].samples_per_shard
    try:
        with _source(options) as source:
            if checks.shrink and not is_published(options.url):
                write_render.print_resize_trial(checks.shrink, source, options.seed)
            with write_render.progress_bars(source) as update:
                dataset = write_dataset(
                    source,
                    options.url,
                    seed=options.seed,
                    samples_per_shard=per_shard,
                    shard_bytes=options.shard_bytes,
                    checks=checks,
                    num_workers=options.num_workers,
                    on_progress=partial(update, "writing"),
                    on_hashing=partial(update, "hashing"),
                )
    except KeyboardInterrupt:
        write_render.print_interrupted(options.url)
        return INTERRUPTED
    write_render.print_summary(options.url, source, dataset)
    return 0


@contextmanager
def _source(options: argparse.Namespace) -> "Iterator[Source]":
    """Yield the source of a verb, and keep copies of remote shards as long."""
    from data_sharding.tools.scan import ReadOptions
    from orchestrator.cli.dataset.render import progress_bar

    writer = _WRITERS[options.verb]
    if not writer.reads_shards:
        yield writer.open_source(options)
        return
    with TemporaryDirectory(prefix="tahoe-scratch-", dir=options.scratch) as scratch:
        with progress_bar("reading", total=None) as on_progress:
            reading = ReadOptions(Path(scratch), options.num_workers, on_progress)
            source = writer.open_source(options, reading)
        yield source


def _checks(options: argparse.Namespace) -> "ImageChecks":
    from data_sharding.image.resize import ResizeSettings
    from data_sharding.writing.shard_writer import ImageChecks

    shrink = None
    if options.max_side is not None or options.short_side is not None:
        shrink = ResizeSettings(options.max_side, options.short_side, options.quality)
    names = ("max_bad_fraction", "dedupe", "drop_damaged", "decode", "bit_depth")
    return ImageChecks(shrink=shrink, **{name: getattr(options, name) for name in names})


def _add_shard_options(verb: argparse.ArgumentParser, per_shard: int) -> None:
    verb.add_argument("--seed", type=int, default=0, help="seed of split and order (default 0)")
    size = verb.add_mutually_exclusive_group()
    size_help = f"maximum number of samples in a shard (default {per_shard})"
    size.add_argument("--samples-per-shard", type=int, metavar="N", help=size_help)
    bytes_help = "maximum size of the image files in a shard, for example 256MB"
    size.add_argument("--shard-bytes", type=num_bytes, metavar="BYTES", help=bytes_help)
    add_num_workers(verb, most=_MAX_WORKERS)


def _add_check_options(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    bad_help = "maximum fraction of images dropped as corrupt or too large (default %(default)s)"
    add("--max-bad-fraction", type=float, default=0.01, metavar="FRACTION", help=bad_help)
    add("--dedupe", action="store_true", help="drop training images whose bytes occurred before")
    damaged = verb.add_mutually_exclusive_group()
    drop_help = "drop images that decode with damage, which are otherwise kept and listed"
    damaged.add_argument("--drop-damaged", action="store_true", help=drop_help)
    trust_help = "check only the header and the end of each image, which is much faster"
    damaged.add_argument("--no-decode", dest="decode", action="store_false", help=trust_help)
    depth_help = "bits in use of 16-bit grey values, if not all, to scale them by"
    add("--bit-depth", type=int, choices=range(9, 16), metavar="N", help=depth_help)
    side = verb.add_mutually_exclusive_group()
    for name, which in (("--max-side", "longer"), ("--short-side", "shorter")):
        side_help = f"maximum of the {which} side in pixels; larger images are shrunk"
        side.add_argument(name, type=int, metavar="N", help=side_help)
    add("--quality", type=int, default=90, help="JPEG quality of shrunk images (default 90)")


def _add_val_fraction(
    verb: argparse.ArgumentParser, default: float | None = None, *, required: bool = False
) -> None:
    val_help = "fraction of every class that becomes val"
    val_help += f" (default {default})" if default else ""
    verb.add_argument(
        "--val-fraction", type=float, default=default, required=required, help=val_help
    )


def _add_digits(verb: argparse.ArgumentParser) -> None:
    _add_val_fraction(verb, 0.2)


def _digits(options: argparse.Namespace) -> "Source":
    from data_sharding.sources.digits import digits

    return digits(options.val_fraction, options.seed)


def _add_folder(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("directory", type=Path, metavar="DIR", help="directory of class directories")
    _add_val_fraction(verb)
    add("--follow-links", action="store_true", help="open linked directories below the classes")
    add("--allow-empty", action="store_true", help="keep classes without training images")
    skip_help = "maximum fraction of skipped files that may be images (default %(default)s)"
    add("--max-passed-over", type=float, default=0.1, metavar="FRACTION", help=skip_help)


def _folder(options: argparse.Namespace) -> "Source":
    from data_sharding.sources.folder import FolderOptions, folder

    limits = FolderOptions(options.follow_links, options.allow_empty, options.max_passed_over)
    return folder(options.directory, options.val_fraction, options.seed, limits)


def _add_csv(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("file", type=Path, metavar="FILE", help="CSV file whose first row names the columns")
    add("--root", type=Path, metavar="DIR", help="base directory of paths (default: that of FILE)")
    add("--val", type=Path, metavar="FILE", help="CSV file of the validation images")
    _add_val_fraction(verb)
    for column in ("path", "label"):
        column_help = f"header of the column of {column}s (default %(default)s)"
        add(f"--{column}-column", default=column, metavar="NAME", help=column_help)
    delimiter_help = "character between cells, or tab (default: detected from the first row)"
    add("--delimiter", type=_delimiter, metavar="CHAR", help=delimiter_help)
    labels = verb.add_mutually_exclusive_group()
    multi_help = "separator of the labels of images with several"
    labels.add_argument("--multi-label", metavar="SEP", help=multi_help)
    labels.add_argument("--no-labels", action="store_true", help="images without labels")


def _csv(options: argparse.Namespace) -> "Source":
    from data_sharding.sources.csv_file import Columns, csv_file

    label = None if options.no_labels else options.label_column
    return csv_file(
        options.file,
        Columns(options.path_column, label, options.multi_label, options.delimiter),
        root=options.root,
        val_path=options.val,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, nor tab")
    return delimiter


def _add_imagenet(verb: argparse.ArgumentParser) -> None:
    names = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
    for option, name in zip(("--train", "--val", "--devkit"), names, strict=True):
        verb.add_argument(option, type=Path, required=True, metavar="FILE", help=name)
    subset_help = "accept smaller archives of this layout, with other counts and digests"
    verb.add_argument("--subset", action="store_true", help=subset_help)


def _imagenet(options: argparse.Namespace) -> "Source":
    from data_sharding.sources.imagenet import Archives, imagenet
    from orchestrator.cli.dataset.render import progress_bar

    archives = Archives(options.train, options.val, options.devkit)
    num_bytes = sum(path.stat().st_size for path in vars(archives).values() if path.exists())
    with progress_bar("checking", total=num_bytes >> 20, unit="MB") as on_checked:
        return imagenet(archives, is_subset=options.subset, on_checked=on_checked)


def _add_cifar(verb: argparse.ArgumentParser) -> None:
    archive_help = "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
    verb.add_argument("archive", type=Path, metavar="FILE", help=archive_help)


def _cifar(options: argparse.Namespace) -> "Source":
    from data_sharding.sources.cifar import cifar

    return cifar(options.archive)


def _add_webdataset(verb: argparse.ArgumentParser) -> None:
    inputs_help = "shards (.tar, with {000..099} or *), or directories of them"
    verb.add_argument("urls", nargs="+", metavar="URL", help=inputs_help)
    val_help = "shards for validation (repeatable)"
    verb.add_argument("--val", action="append", default=[], metavar="URL", help=val_help)
    _add_val_fraction(verb)
    add_label_options(verb)
    relabel_help = "number the labels that occur from 0 on, where they start at 1 or have gaps"
    verb.add_argument("--relabel", action="store_true", help=relabel_help)
    add_scratch(verb)


def _webdataset(options: argparse.Namespace, reading: "ReadOptions") -> "Source":
    from data_sharding.sources.shards import from_webdataset
    from data_sharding.tools.index import read_class_names

    return from_webdataset(
        options.urls,
        label_rule(options),
        reading,
        val_urls=options.val,
        val_fraction=options.val_fraction,
        seed=options.seed,
        classes=read_class_names(options.classes) if options.classes else None,
        relabel=options.relabel,
    )


def _add_merge(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("urls", nargs="+", metavar="URL", help=URL_HELP)
    union_help = "allow different classes; labels follow the names of classes"
    verb.add_argument("--union-classes", action="store_true", help=union_help)
    add_scratch(verb)


def _merge(options: argparse.Namespace, reading: "ReadOptions") -> "Source":
    from data_sharding.sources.shards import merge

    return merge(options.urls, reading, union_classes=options.union_classes)


def _add_split(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source_url", metavar="URL", help=URL_HELP)
    _add_val_fraction(verb, required=True)
    verb.add_argument("--split", choices=("train", "val"), help="the only split to take from")
    add_scratch(verb)


def _split(options: argparse.Namespace, reading: "ReadOptions") -> "Source":
    from data_sharding.sources.shards import resplit

    fraction, seed = options.val_fraction, options.seed
    return resplit(options.source_url, options.split, reading, val_fraction=fraction, seed=seed)


_WRITERS = {
    "digits": Writer("write scikit-learn's handwritten digits", _add_digits, _digits, False, 500),
    "folder": Writer("write DIR/{train,val}/CLASS/* or DIR/CLASS/*", _add_folder, _folder),
    "csv": Writer("write the images that a CSV file lists", _add_csv, _csv),
    "imagenet": Writer("write ImageNet from its archives", _add_imagenet, _imagenet),
    "cifar": Writer("write CIFAR-10 or CIFAR-100 from its archive", _add_cifar, _cifar),
    "webdataset": Writer("write the samples of shards", _add_webdataset, _webdataset, True),
    "merge": Writer("write one data set from several", _add_merge, _merge, True),
    "split": Writer("write a set with a new validation split", _add_split, _split, True),
}
