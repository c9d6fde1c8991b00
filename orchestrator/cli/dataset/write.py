"""The verbs of `tahoe shard` that write a data set, and say what was found in it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from orchestrator.cli.dataset import sources as named
from orchestrator.cli.shared.arguments import add_num_workers, num_bytes

if TYPE_CHECKING:
    from data_sharding.sources.base import Source
    from data_sharding.writing.shard_writer import ImageChecks

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED = 130  # what a shell reports after a Ctrl-C

_MAX_WORKERS = 8  # more would wait for the disk
# verb: (adds the arguments that name its source, help, default of --samples-per-shard)
_WRITERS = {
    "digits": (named.add_digits, "write scikit-learn's 1,797 handwritten digits", 500),
    "folder": (named.add_folder, "write DIR/{train,val}/CLASS/* or DIR/CLASS/*", 5000),
    "csv": (named.add_csv, "write the images that a CSV file lists", 5000),
    "imagenet": (named.add_imagenet, "write ImageNet from its archives", 5000),
    "cifar": (named.add_cifar, "write CIFAR-10 or CIFAR-100 from its archive", 5000),
    "webdataset": (
        named.add_webdataset,
        "write a data set from the shards of others",
        5000,
    ),
    "merge": (named.add_merge, "write one data set from several", 5000),
    "split": (named.add_split, "write a data set with a validation split chosen anew", 5000),
}


def add_writers(verbs: "Verbs") -> None:
    """Add the verbs that write a data set."""
    for name, (add_source, help_text, per_shard) in _WRITERS.items():
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        verb.set_defaults(call=write)
        add_source(verb)
        verb.add_argument("url", metavar="OUT", help="a path or fsspec URL to write to")
        _add_shard_options(verb, per_shard)
        _add_check_options(verb)


def write(options: argparse.Namespace) -> int:
    """Write the source that the options name to their URL; return the exit code.

    Raises:
        DataError: the source cannot be read, or the URL holds something else.
    """
    from data_sharding.writing.dataset_writer import is_published, write_dataset
    from orchestrator.cli.dataset import write_render

    checks = _checks(options)
    per_shard = options.samples_per_shard
    if per_shard is None and options.shard_bytes is None:
        per_shard = options.default_samples_per_shard
    try:
        with _source(options) as source:
            if checks.shrink and not is_published(options.url):
                write_render.print_resize_trial(checks.shrink, source, options.seed)
            with write_render.progress(source) as bars:
                dataset = write_dataset(
                    source,
                    options.url,
                    seed=options.seed,
                    samples_per_shard=per_shard,
                    shard_bytes=options.shard_bytes,
                    checks=checks,
                    num_workers=options.num_workers,
                    on_progress=bars.on_writing,
                    on_hashing=bars.on_hashing,
                )
    except KeyboardInterrupt:
        write_render.interrupted(options.url)
        return INTERRUPTED
    write_render.print_summary(options.url, source, dataset)
    return 0


@contextmanager
def _source(options: argparse.Namespace) -> "Iterator[Source]":
    """Yield what is to be written; copies of remote shards are there as long."""
    if options.verb in ("digits", "folder", "csv", "imagenet", "cifar"):
        yield named.image_source(options)
        return
    from data_sharding.tools.scan import ReadOptions
    from orchestrator.cli.dataset import render

    with TemporaryDirectory(prefix="tahoe-scratch-", dir=options.scratch) as scratch:
        with render.progress("reading", total=None) as on_progress:
            reading = ReadOptions(Path(scratch), options.num_workers, on_progress)
            source = named.shard_source(options, reading)
        yield source


def _checks(options: argparse.Namespace) -> "ImageChecks":
    from data_sharding.image.resize import ResizeSettings
    from data_sharding.writing.shard_writer import ImageChecks

    shrink = None
    if options.max_side is not None or options.short_side is not None:
        shrink = ResizeSettings(options.max_side, options.short_side, options.quality)
    return ImageChecks(
        max_bad_fraction=options.max_bad_fraction,
        shrink=shrink,
        dedupe=options.dedupe,
        drop_damaged=options.drop_damaged,
        decode=options.decode,
        bit_depth=options.bit_depth,
    )


def _add_shard_options(verb: argparse.ArgumentParser, per_shard: int) -> None:
    verb.add_argument("--seed", type=int, default=0, help="of split and order (default 0)")
    size = verb.add_mutually_exclusive_group()
    size_help = f"at most (default {per_shard})"
    size.add_argument("--samples-per-shard", type=int, help=size_help)
    bytes_help = "of image files, at most, instead of that: 256MB"
    size.add_argument("--shard-bytes", type=num_bytes, metavar="BYTES", help=bytes_help)
    verb.set_defaults(default_samples_per_shard=per_shard)
    add_num_workers(verb, most=_MAX_WORKERS)


def _add_check_options(verb: argparse.ArgumentParser) -> None:
    bad_help = "of images that may be left out, corrupt or too large (default %(default)s)"
    verb.add_argument(
        "--max-bad-fraction", type=float, default=0.01, metavar="SHARE", help=bad_help
    )
    dedupe_help = "leave out of train what is there twice, or in val: the same bytes"
    verb.add_argument("--dedupe", action="store_true", help=dedupe_help)
    drop_help = "leave out what decodes with damage, which is kept and named otherwise"
    damaged = verb.add_mutually_exclusive_group()
    damaged.add_argument("--drop-damaged", action="store_true", help=drop_help)
    trust_help = "trust the images: look at the header and the end of each, which is much faster"
    damaged.add_argument("--no-decode", dest="decode", action="store_false", help=trust_help)
    depth_help = "that greys in files of 16 bits use, if not all: they are scaled"
    verb.add_argument("--bit-depth", type=int, choices=range(9, 16), metavar="N", help=depth_help)
    side = verb.add_mutually_exclusive_group()
    max_help = "make images smaller whose longer side has more pixels"
    side.add_argument("--max-side", type=int, metavar="N", help=max_help)
    short_help = "make images smaller whose shorter side has more pixels"
    side.add_argument("--short-side", type=int, metavar="N", help=short_help)
    quality_help = "of the JPEGs made then (default %(default)s)"
    verb.add_argument("--quality", type=int, default=90, help=quality_help)
