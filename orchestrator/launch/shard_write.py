"""`tahoe shard folder|csv|digits`: write a data set, with progress and all that was found."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_sharding.reencode import Shrink
    from data_sharding.sources import Source

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED = 130  # what a shell reports after a Ctrl-C

_MAX_WORKERS = 8  # more would wait for the disk


def add_writers(verbs: "Verbs") -> None:
    """Add the verbs that write a data set."""
    digits = verbs.add_parser("digits", help="write scikit-learn's 1,797 handwritten digits")
    _add_val_fraction(digits, 0.2)
    folder = verbs.add_parser("folder", help="write DIR/{train,val}/CLASS/* or DIR/CLASS/*")
    folder.add_argument("directory", type=Path, metavar="DIR", help="where the class folders lie")
    _add_val_fraction(folder, None)
    csv = verbs.add_parser("csv", help="write the images that a CSV file lists")
    _add_csv_options(csv)
    for verb, per_shard in ((digits, 500), (folder, 5000), (csv, 5000)):
        verb.set_defaults(call=write)
        verb.add_argument("url", metavar="URL", help="a path or fsspec URL to write to")
        _add_shard_options(verb, per_shard)
        _add_check_options(verb)


def _add_val_fraction(verb: argparse.ArgumentParser, default: float | None) -> None:
    val_help = "share of each class that becomes val, where nothing else says (0.2 for digits)"
    verb.add_argument("--val-fraction", type=float, default=default, help=val_help)


def _add_csv_options(verb: argparse.ArgumentParser) -> None:
    file_help = "has the columns path and label; its first row says so"
    verb.add_argument("file", type=Path, metavar="FILE", help=file_help)
    root_help = "where paths start from (default: where FILE lies)"
    verb.add_argument("--root", type=Path, metavar="DIR", help=root_help)
    val_help = "lists the images for validation"
    verb.add_argument("--val", type=Path, metavar="FILE", help=val_help)
    _add_val_fraction(verb, None)
    column_help = "its header (default %(default)s)"
    verb.add_argument("--path-column", default="path", metavar="NAME", help=column_help)
    verb.add_argument("--label-column", default="label", metavar="NAME", help=column_help)
    labels = verb.add_mutually_exclusive_group()
    multi_help = "images have several labels, with SEP between them"
    labels.add_argument("--multi-label", metavar="SEP", help=multi_help)
    labels.add_argument("--no-labels", action="store_true", help="images have no labels")


def _add_shard_options(verb: argparse.ArgumentParser, per_shard: int) -> None:
    verb.add_argument("--seed", type=int, default=0, help="of split and order (default 0)")
    size = verb.add_mutually_exclusive_group()
    size_help = f"at most (default {per_shard})"
    size.add_argument("--samples-per-shard", type=int, help=size_help)
    bytes_help = "of image files, at most, instead of that: 256MB"
    size.add_argument("--shard-bytes", type=_num_bytes, metavar="BYTES", help=bytes_help)
    verb.set_defaults(default_samples_per_shard=per_shard)
    workers_help = f"processes (default: one a core, at most {_MAX_WORKERS})"
    num_workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    verb.add_argument("--num-workers", type=int, default=num_workers, help=workers_help)


def _add_check_options(verb: argparse.ArgumentParser) -> None:
    bad_help = "of all images that may be corrupt and left out (default %(default)s)"
    verb.add_argument("--max-bad-share", type=float, default=0.01, metavar="SHARE", help=bad_help)
    dedupe_help = "leave out of train what is there twice, or in val: the same bytes"
    verb.add_argument("--dedupe", action="store_true", help=dedupe_help)
    side = verb.add_mutually_exclusive_group()
    max_help = "make images smaller whose longer side has more pixels"
    side.add_argument("--max-side", type=int, metavar="N", help=max_help)
    short_help = "make images smaller whose shorter side has more pixels"
    side.add_argument("--short-side", type=int, metavar="N", help=short_help)
    quality_help = "of the JPEGs made then (default %(default)s)"
    verb.add_argument("--quality", type=int, default=90, help=quality_help)


def write(options: argparse.Namespace) -> int:
    """Write the source that the options name to their URL; return the exit code.

    Raises:
        DataError: the source cannot be read, or the URL holds something else.
    """
    from data_sharding.write import is_published, write_dataset
    from data_sharding.write_shard import Checks
    from orchestrator.launch import write_show

    shrink = _shrink(options)
    source = _source(options)
    if shrink and not is_published(options.url):
        write_show.trial(shrink, source, options.seed)
    per_shard = options.samples_per_shard
    if per_shard is None and options.shard_bytes is None:
        per_shard = options.default_samples_per_shard
    try:
        with write_show.progress(source) as bars:
            dataset = write_dataset(
                source,
                options.url,
                seed=options.seed,
                samples_per_shard=per_shard,
                shard_bytes=options.shard_bytes,
                checks=Checks(options.max_bad_share, shrink, options.dedupe),
                num_workers=options.num_workers,
                on_progress=bars.on_writing,
                on_hashing=bars.on_hashing,
            )
    except KeyboardInterrupt:
        write_show.interrupted(options.url)
        return INTERRUPTED
    write_show.written(options.url, source, dataset)
    return 0


def _shrink(options: argparse.Namespace) -> "Shrink | None":
    from data_sharding.reencode import Shrink

    if options.max_side is None and options.short_side is None:
        return None
    return Shrink(options.max_side, options.short_side, options.quality)


def _source(options: argparse.Namespace) -> "Source":
    from data_sharding import sources
    from data_sharding.csv_source import Columns, csv_file

    if options.verb == "digits":
        return sources.digits(options.val_fraction, options.seed)
    if options.verb == "folder":
        return sources.folder(options.directory, options.val_fraction, options.seed)
    label = None if options.no_labels else options.label_column
    return csv_file(
        options.file,
        Columns(options.path_column, label, options.multi_label),
        root=options.root,
        val_path=options.val,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )


def _num_bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 256MB") from None
