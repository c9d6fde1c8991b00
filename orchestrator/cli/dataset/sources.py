"""What the writing verbs of `tahoe shard` write: their arguments, and the source they name."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import URL_HELP, add_label_options, add_scratch, label_rule

if TYPE_CHECKING:
    from data_sharding.sources.base import Source
    from data_sharding.tools.scan import ReadOptions


def add_digits(verb: argparse.ArgumentParser) -> None:
    _add_val_fraction(verb, 0.2)


def add_folder(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("directory", type=Path, metavar="DIR", help="where the class folders lie")
    _add_val_fraction(verb, None)
    links_help = "open linked directories below the class folders, too"
    verb.add_argument("--follow-links", action="store_true", help=links_help)
    empty_help = "keep classes whose folders hold no images for training"
    verb.add_argument("--allow-empty", action="store_true", help=empty_help)
    over_help = "of files that may be passed over, if they may be images (default %(default)s)"
    verb.add_argument("--max-passed-over", type=float, default=0.1, metavar="SHARE", help=over_help)


def add_csv(verb: argparse.ArgumentParser) -> None:
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
    delimiter_help = "between cells: a character, or tab (default: what makes a header of line 1)"
    verb.add_argument("--delimiter", type=_delimiter, metavar="CHAR", help=delimiter_help)
    labels = verb.add_mutually_exclusive_group()
    multi_help = "images have several labels, with SEP between them"
    labels.add_argument("--multi-label", metavar="SEP", help=multi_help)
    labels.add_argument("--no-labels", action="store_true", help="images have no labels")


def add_imagenet(verb: argparse.ArgumentParser) -> None:
    names = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz")
    for option, name in zip(("--train", "--val", "--devkit"), names, strict=True):
        verb.add_argument(option, type=Path, required=True, metavar="FILE", help=name)
    subset_help = "smaller archives of this layout: ask for neither counts nor digests"
    verb.add_argument("--subset", action="store_true", help=subset_help)


def add_cifar(verb: argparse.ArgumentParser) -> None:
    archive_help = "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
    verb.add_argument("archive", type=Path, metavar="FILE", help=archive_help)


def add_webdataset(verb: argparse.ArgumentParser) -> None:
    inputs_help = "shards (.tar, with {000..099} or *), or directories of them"
    verb.add_argument("urls", nargs="+", metavar="URL", help=inputs_help)
    val_help = "shards for validation (may be given again)"
    verb.add_argument("--val", action="append", default=[], metavar="URL", help=val_help)
    _add_val_fraction(verb, None)
    add_label_options(verb)
    relabel_help = "number the labels that occur from 0 on, where they begin at 1 or have gaps"
    verb.add_argument("--relabel", action="store_true", help=relabel_help)
    add_scratch(verb)


def add_merge(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("urls", nargs="+", metavar="URL", help=URL_HELP)
    union_help = "let their classes differ; labels follow the names of classes"
    verb.add_argument("--union-classes", action="store_true", help=union_help)
    add_scratch(verb)


def add_split(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("urls", nargs=1, metavar="URL", help=URL_HELP)
    fraction_help = "share of each class that becomes val"
    verb.add_argument("--val-fraction", type=float, required=True, help=fraction_help)
    verb.add_argument("--split", choices=("train", "val"), help="take samples from this one only")
    add_scratch(verb)


def image_source(options: argparse.Namespace) -> "Source":
    """Return the images that digits, folder, csv, imagenet or cifar means.

    Raises:
        DataError: they cannot be listed, or cannot be a data set.
    """
    from data_sharding.sources.csv_file import Columns, csv_file
    from data_sharding.sources.folder import FolderOptions, folder

    if options.verb == "digits":
        from data_sharding.sources.digits import digits

        return digits(options.val_fraction, options.seed)
    if options.verb == "folder":
        how = FolderOptions(options.follow_links, options.allow_empty, options.max_passed_over)
        return folder(options.directory, options.val_fraction, options.seed, how)
    if options.verb == "cifar":
        from data_sharding.sources.cifar import cifar

        return cifar(options.archive)
    if options.verb == "imagenet":
        return _imagenet(options)
    label = None if options.no_labels else options.label_column
    return csv_file(
        options.file,
        Columns(options.path_column, label, options.multi_label, options.delimiter),
        root=options.root,
        val_path=options.val,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )


def _imagenet(options: argparse.Namespace) -> "Source":
    from data_sharding.sources.imagenet import Archives, imagenet
    from orchestrator.cli.dataset import render

    archives = Archives(options.train, options.val, options.devkit)
    num_bytes = sum(path.stat().st_size for path in vars(archives).values() if path.exists())
    with render.progress("checking", total=num_bytes >> 20, unit="MB") as on_checked:
        return imagenet(archives, is_subset=options.subset, on_checked=on_checked)


def shard_source(options: argparse.Namespace, reading: "ReadOptions") -> "Source":
    """Return the samples that webdataset, merge or split means.

    Raises:
        DataError: the shards cannot be read, or cannot be a data set.
    """
    from data_sharding.sources import shards
    from data_sharding.tools.index import read_class_names

    if options.verb == "merge":
        return shards.merge(options.urls, reading, union_classes=options.union_classes)
    fraction = options.val_fraction
    val = None if fraction is None else shards.ValSplit(fraction, options.seed)
    if options.verb == "split":
        assert val is not None
        return shards.resplit(options.urls[0], options.split, reading, val=val)
    return shards.from_webdataset(
        options.urls,
        label_rule(options),
        reading,
        val_urls=options.val,
        val=val,
        classes=read_class_names(options.classes) if options.classes else None,
        relabel=options.relabel,
    )


def _add_val_fraction(verb: argparse.ArgumentParser, default: float | None) -> None:
    val_help = "share of each class that becomes val, where nothing else says (0.2 for digits)"
    verb.add_argument("--val-fraction", type=float, default=default, help=val_help)


def _delimiter(text: str) -> str:
    found = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(found) != 1 or found in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, nor tab")
    return found
