"""`tahoe shard index|verify|stat|preview`: look at a data set that is there."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import (
    URL_HELP,
    add_label_options,
    add_num_workers,
    add_scratch,
    label_rule,
    positive,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_sharding.format.manifest import Manifest
    from data_sharding.tools.scan import ReadOptions

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

Call = Callable[[argparse.Namespace], int]


def add_tools(verbs: "Verbs") -> None:
    """Add the verbs that look at a data set."""
    _add_index(verbs)
    _add_verify(verbs)
    _add_stat(verbs)
    _add_preview(verbs)


def _add_index(verbs: "Verbs") -> None:
    verb = _add(verbs, "index", index, "make the manifests of shards that others have made")
    verb.add_argument("url", metavar="URL", help="holds train/*.tar and val/*.tar")
    verb.add_argument(
        "--split",
        choices=("train", "val"),
        help="only this one; its shards may lie flat in URL, and links to them are made then",
    )
    verb.add_argument("--tars", default="*.tar", metavar="PATTERN", help="only these shards")
    add_label_options(verb)
    verb.add_argument("--force", action="store_true", help="replace a manifest that differs")
    add_num_workers(verb)
    add_scratch(verb)


def _add_verify(verbs: "Verbs") -> None:
    verb = _add(verbs, "verify", verify, "check every shard, label and image of a data set")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("--no-decode", dest="decode", action="store_false", help="trust the images")
    keep_help = "let images pass that decode with damage; they are named all the same"
    verb.add_argument("--keep-damaged", action="store_true", help=keep_help)
    verb.add_argument("--json", action="store_true", help="print JSON, with all that is wrong")
    add_num_workers(verb)
    add_scratch(verb)


def _add_stat(verbs: "Verbs") -> None:
    verb = _add(verbs, "stat", stat, "print a data set's numbers: classes, sizes, mean and std")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("--json", action="store_true", help="print JSON")
    samples_help = "images that mean and std are taken from (default %(default)s)"
    verb.add_argument("--num-samples", type=positive, default=2000, help=samples_help)
    index_help = "also write which samples each class has, which recipe.class_balanced needs"
    verb.add_argument("--class-index", action="store_true", help=index_help)
    add_num_workers(verb)
    add_scratch(verb)


def _add_preview(verbs: "Verbs") -> None:
    verb = _add(verbs, "preview", preview, "draw stored images with their classes on one sheet")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="to write")
    verb.add_argument("--split", choices=("train", "val"), default="val", help="default val")
    verb.add_argument("--num", type=positive, default=64, help="images (default %(default)s)")
    verb.add_argument("--seed", type=int, help="draw them from the whole split by this seed")
    add_scratch(verb)


def index(options: argparse.Namespace) -> int:
    """Make manifests; return the exit code.

    Raises:
        DataError: the shards cannot be used, or another manifest is there.
    """
    from data_sharding.tools.find_shards import find_shards
    from data_sharding.tools.index import (
        classes_of_other_split,
        index_shards,
        read_class_names,
        write_manifests,
    )
    from orchestrator.cli.dataset import render

    rule = label_rule(options)
    found = find_shards(options.url, options.split, options.tars)
    given = read_class_names(options.classes) if options.classes else None
    of_other = classes_of_other_split(options.url, found)
    with render.progress("reading", total=None) as on_progress:
        manifests, counts = index_shards(
            found, rule, _read_options(options, on_progress), classes=given or of_other
        )
    is_written = write_manifests(options.url, found, manifests, force=options.force)
    render.index(
        options.url, manifests, counts, is_written=is_written, has_other=of_other is not None
    )
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a data set; return 1 if anything is wrong with it."""
    from data_sharding.format.manifest import read_manifests
    from data_sharding.tools.scan import DAMAGED
    from data_sharding.tools.verify import verify as verify_all
    from orchestrator.cli.dataset import render

    total = sum(manifest.num_samples for manifest in read_manifests(options.url).values())
    with render.progress("checking", total) as on_progress:
        report = verify_all(options.url, _read_options(options, on_progress), decode=options.decode)
    show = render.print_verify_report_json if options.json else render.print_verify_report
    show(report)
    accepted = (DAMAGED,) if options.keep_damaged else ()
    return 1 if any(problem.fix not in accepted for problem in report.problems) else 0


def stat(options: argparse.Namespace) -> int:
    """Print the numbers of a data set; return the exit code."""
    from data_sharding.format.manifest import read_manifest, read_manifests
    from data_sharding.tools.stats import measure
    from orchestrator.cli.dataset import render

    stats = {}
    manifests = read_manifests(options.url)
    if options.class_index:
        read_manifest(options.url, "train")  # else the work below would be for nothing
    for split, manifest in manifests.items():
        with render.progress(split, manifest.num_samples) as on_progress:
            stats[split] = measure(
                options.url,
                split,
                manifest,
                _read_options(options, on_progress),
                num_measured=options.num_samples,
            )
    show = render.stats_json if options.json else render.stats
    show(options.url, manifests, stats)
    if options.class_index:
        _write_class_index(options.url, manifests["train"], stats["train"].first_labels)
    return 0


def preview(options: argparse.Namespace) -> int:
    """Draw a contact sheet; return the exit code."""
    from data_sharding.format.manifest import read_manifest
    from data_sharding.tools.preview import preview as draw
    from orchestrator.cli.dataset import render

    manifest = read_manifest(options.url, options.split)
    sheet = draw(
        options.url,
        options.split,
        manifest,
        num=options.num,
        seed=options.seed,
        scratch=options.scratch,
    )
    render.save(sheet, options.output)
    return 0


def _read_options(options: argparse.Namespace, on_progress: Callable[[int], None]) -> "ReadOptions":
    from data_sharding.tools.scan import ReadOptions

    return ReadOptions(options.scratch, options.num_workers, on_progress)


def _write_class_index(url: str, manifest: "Manifest", labels: "NDArray[np.int32]") -> None:
    from data_sharding.errors import DataError
    from data_sharding.sampling.class_balanced import write_class_index

    if manifest.labels.kind == "single" and labels.min() < 0:
        raise DataError(
            f"{int((labels < 0).sum()):,} samples of {url} have no valid label, so no class index "
            "was written: classes cannot be balanced. `tahoe shard verify` names them."
        )
    write_class_index(url, "train", manifest, labels.tolist())


def _add(verbs: "Verbs", name: str, call: Call, help_text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    verb.set_defaults(call=call)
    return verb
