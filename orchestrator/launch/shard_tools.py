"""`tahoe shard index|verify|stat|preview`, and `webdataset|merge|split`, which write a new set."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from orchestrator.launch.shard_write import INTERRUPTED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_sharding.labels import LabelRule
    from data_sharding.manifest import Manifest
    from data_sharding.reshard import Reading
    from data_sharding.sources import Source

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

Call = Callable[[argparse.Namespace], int]

URL_HELP = "a data set: a path or any fsspec URL"


def add_tools(verbs: "Verbs") -> None:
    """Add the verbs that look at a data set or make one of others."""
    _add_index(verbs)
    _add_verify(verbs)
    _add_stat(verbs)
    _add_preview(verbs)
    _add_webdataset(verbs)
    _add_merge(verbs)
    _add_split(verbs)


def _add_index(verbs: "Verbs") -> None:
    verb = _add(verbs, "index", index, "make the manifests of shards that others have made")
    verb.add_argument("url", metavar="URL", help="holds train/*.tar and val/*.tar")
    verb.add_argument(
        "--split",
        choices=("train", "val"),
        help="only this one; its shards may lie flat in URL, and links to them are made then",
    )
    verb.add_argument("--tars", default="*.tar", metavar="PATTERN", help="only these shards")
    _add_label_options(verb)
    verb.add_argument("--force", action="store_true", help="replace a manifest that differs")
    _add_reading_options(verb)


def _add_verify(verbs: "Verbs") -> None:
    verb = _add(verbs, "verify", verify, "check every shard, label and image of a data set")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("--no-decode", dest="decode", action="store_false", help="trust the images")
    verb.add_argument("--json", action="store_true", help="print JSON, with all that is wrong")
    _add_reading_options(verb)


def _add_stat(verbs: "Verbs") -> None:
    verb = _add(verbs, "stat", stat, "print a data set's numbers: classes, sizes, mean and std")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("--json", action="store_true", help="print JSON")
    samples_help = "images that mean and std are taken from (default %(default)s)"
    verb.add_argument("--num-samples", type=_positive, default=2000, help=samples_help)
    index_help = "also write which samples each class has, which recipe.balanced needs"
    verb.add_argument("--class-index", action="store_true", help=index_help)
    _add_reading_options(verb)


def _add_preview(verbs: "Verbs") -> None:
    verb = _add(verbs, "preview", preview, "draw stored images with their classes on one sheet")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="to write")
    verb.add_argument("--split", choices=("train", "val"), default="val", help="default val")
    verb.add_argument("--num", type=_positive, default=64, help="images (default %(default)s)")
    verb.add_argument("--seed", type=int, help="draw them from the whole split by this seed")
    verb.add_argument("--scratch", metavar="DIR", help="for copies of remote shards")


def _add_webdataset(verbs: "Verbs") -> None:
    verb = _add(verbs, "webdataset", write, "write a data set from shards that others have made")
    inputs_help = "shards (.tar, with {000..099} or *), or directories of them"
    verb.add_argument("urls", nargs="+", metavar="URL", help=inputs_help)
    _add_output(verb)
    val_help = "shards for validation (may be given again)"
    verb.add_argument("--val", action="append", default=[], metavar="URL", help=val_help)
    verb.add_argument("--val-fraction", type=float, help="or this share of each class")
    _add_label_options(verb)


def _add_merge(verbs: "Verbs") -> None:
    verb = _add(verbs, "merge", write, "write one data set from several")
    verb.add_argument("urls", nargs="+", metavar="URL", help=URL_HELP)
    _add_output(verb)
    union_help = "let their classes differ; labels follow the names of classes"
    verb.add_argument("--union-classes", action="store_true", help=union_help)


def _add_split(verbs: "Verbs") -> None:
    verb = _add(verbs, "split", write, "write a data set with a validation split chosen anew")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    _add_output(verb)
    fraction_help = "share of each class that becomes val"
    verb.add_argument("--val-fraction", type=float, required=True, help=fraction_help)
    verb.add_argument("--split", choices=("train", "val"), help="take samples from this one only")


def _add_label_options(verb: argparse.ArgumentParser) -> None:
    label_help = "the member that holds the label: cls, txt, json:FIELD, none (default cls)"
    verb.add_argument("--label", default="cls", metavar="EXT[:FIELD]", help=label_help)
    verb.add_argument("--multi-label", action="store_true", help="a sample has several labels")
    classes_help = "the names of the classes, one a line, class 0 first"
    verb.add_argument("--classes", type=Path, metavar="FILE", help=classes_help)


def _add_output(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("output", metavar="OUT", help="a path or fsspec URL to write to")
    verb.add_argument("--seed", type=int, default=0, help="of split and order (default 0)")
    size_help = "at most (default %(default)s)"
    verb.add_argument("--samples-per-shard", type=int, default=5000, help=size_help)
    _add_reading_options(verb)


def _add_reading_options(verb: argparse.ArgumentParser) -> None:
    workers_help = "processes (default: one a core)"
    verb.add_argument("--num-workers", type=_positive, default=_num_cores(), help=workers_help)
    verb.add_argument("--scratch", metavar="DIR", help="for copies of remote shards")


def index(options: argparse.Namespace) -> int:
    """Make manifests; return the exit code.

    Raises:
        DataError: the shards cannot be used, or another manifest is there.
    """
    from data_sharding.index import (
        classes_of_other_split,
        find_shards,
        index_shards,
        publish,
        read_class_names,
    )
    from orchestrator.launch import shard_show

    rule = _label_rule(options)
    found = find_shards(options.url, options.split, options.tars)
    given = read_class_names(options.classes) if options.classes else None
    with shard_show.progress("reading", total=None) as on_progress:
        manifests, counts = index_shards(
            found,
            rule,
            classes=given or classes_of_other_split(options.url, found),
            num_workers=options.num_workers,
            scratch=options.scratch,
            on_progress=on_progress,
        )
    is_written = publish(options.url, found, manifests, force=options.force)
    shard_show.index(options.url, manifests, counts, is_written=is_written)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a data set; return 1 if anything is wrong with it."""
    from data_sharding.verify import read_manifests
    from data_sharding.verify import verify as verify_all
    from orchestrator.launch import shard_show

    total = sum(manifest.num_samples for manifest in read_manifests(options.url).values())
    with shard_show.progress("checking", total) as on_progress:
        verdict = verify_all(
            options.url,
            decode=options.decode,
            num_workers=options.num_workers,
            scratch=options.scratch,
            on_progress=on_progress,
        )
    show = shard_show.verdict_json if options.json else shard_show.verdict
    show(verdict)
    return 1 if verdict.problems else 0


def stat(options: argparse.Namespace) -> int:
    """Print the numbers of a data set; return the exit code."""
    from data_sharding.manifest import read_manifest
    from data_sharding.stats import measure
    from data_sharding.verify import read_manifests
    from orchestrator.launch import shard_show

    stats = {}
    manifests = read_manifests(options.url)
    if options.class_index:
        read_manifest(options.url, "train")  # else the work below would be for nothing
    for split, manifest in manifests.items():
        with shard_show.progress(split, manifest.num_samples) as on_progress:
            stats[split] = measure(
                options.url,
                split,
                manifest,
                num_measured=options.num_samples,
                num_workers=options.num_workers,
                scratch=options.scratch,
                on_progress=on_progress,
            )
    show = shard_show.stats_json if options.json else shard_show.stats
    show(options.url, manifests, stats)
    if options.class_index:
        _write_class_index(options.url, manifests["train"], stats["train"].first_labels)
    return 0


def preview(options: argparse.Namespace) -> int:
    """Draw a contact sheet; return the exit code."""
    from data_sharding.manifest import read_manifest
    from data_sharding.preview import preview as draw
    from orchestrator.launch import shard_show

    manifest = read_manifest(options.url, options.split)
    sheet = draw(
        options.url,
        options.split,
        manifest,
        num=options.num,
        seed=options.seed,
        scratch=options.scratch,
    )
    shard_show.save(sheet, options.output)
    return 0


def write(options: argparse.Namespace) -> int:
    """Write a new data set from shards; return the exit code.

    Raises:
        DataError: the shards cannot be used, or the output holds something else.
    """
    from data_sharding.reshard import Reading
    from data_sharding.write import write_dataset
    from orchestrator.launch import shard_show, write_show

    with TemporaryDirectory(prefix="tahoe-scratch-", dir=options.scratch) as scratch:
        try:
            with shard_show.progress("reading", total=None) as on_progress:
                reading = Reading(Path(scratch), options.num_workers, on_progress)
                source = _source(options, reading)
            with write_show.progress(source) as bars:
                dataset = write_dataset(
                    source,
                    options.output,
                    seed=options.seed,
                    samples_per_shard=options.samples_per_shard,
                    num_workers=options.num_workers,
                    on_progress=bars.on_writing,
                )
        except KeyboardInterrupt:
            write_show.interrupted(options.output)
            return INTERRUPTED
    write_show.written(options.output, source, dataset)
    return 0


def _write_class_index(url: str, manifest: "Manifest", labels: "NDArray[np.int32]") -> None:
    from data_sharding.balance import write_class_index
    from data_sharding.manifest import DataError

    if manifest.labels.kind == "single" and labels.min() < 0:
        raise DataError(
            f"{int((labels < 0).sum()):,} samples of {url} have no valid label, so no class index "
            "was written: classes cannot be balanced. `tahoe shard verify` names them."
        )
    write_class_index(url, "train", manifest, labels.tolist())


def _source(options: argparse.Namespace, reading: "Reading") -> "Source":
    from data_sharding import reshard
    from data_sharding.index import read_class_names

    fraction = getattr(options, "val_fraction", None)
    val = None if fraction is None else reshard.ValChoice(fraction, options.seed)
    if options.verb == "merge":
        return reshard.merge(options.urls, reading, union_classes=options.union_classes)
    if options.verb == "split":
        assert val is not None
        return reshard.split_anew(options.url, options.split, reading, val=val)
    return reshard.webdataset(
        options.urls,
        _label_rule(options),
        reading,
        val_urls=options.val,
        val=val,
        classes=read_class_names(options.classes) if options.classes else None,
    )


def _label_rule(options: argparse.Namespace) -> "LabelRule":
    from pydantic import ValidationError

    from data_sharding.labels import LabelRule
    from data_sharding.manifest import DataError

    if options.label == "none":
        return LabelRule(kind="none")
    extension, _, field = options.label.partition(":")
    try:
        return LabelRule("multi" if options.multi_label else "single", extension, field or None)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(
            f"--label {options.label} cannot be used: {reason}. Nothing was written. Write cls, "
            "txt, json:FIELD or none."
        ) from None


def _add(verbs: "Verbs", name: str, call: Call, help_text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    verb.set_defaults(call=call)
    return verb


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))
