"""`tahoe shard index|verify|stat|preview` and `tahoe data preview`: inspect a data set."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.dataset.arguments import (
    URL_HELP,
    add_label_options,
    add_num_workers,
    add_scratch,
    label_rule,
)
from orchestrator.cli.shared.arguments import positive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_sharding.format.manifest import Manifest
    from data_sharding.tools.scan import ReadOptions

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

Call = Callable[[argparse.Namespace], int]

_PNG_HELP = "picture to write"
_SPLITS = ("train", "val")


def add_inspectors(verbs: "Verbs") -> None:
    """Add the verbs of `tahoe shard` that inspect a data set."""
    verb = _add(verbs, "index", index, "make the manifests of existing shards")
    verb.add_argument("url", metavar="URL", help="directory with train/*.tar and val/*.tar")
    split_help = "the only split to index; its shards may be in URL itself, and are linked then"
    verb.add_argument("--split", choices=_SPLITS, help=split_help)
    verb.add_argument("--tars", default="*.tar", metavar="PATTERN", help="names of the shards")
    add_label_options(verb)
    verb.add_argument("--force", action="store_true", help="replace a manifest that differs")
    add_num_workers(verb)
    add_scratch(verb)

    verb = _add(verbs, "verify", verify, "check every shard, label and image of a data set")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("--no-decode", dest="decode", action="store_false", help="trust the images")
    keep_help = "accept images that decode with damage, which are still listed"
    verb.add_argument("--keep-damaged", action="store_true", help=keep_help)
    verb.add_argument("--json", action="store_true", help="print JSON, with all problems")
    add_num_workers(verb)
    add_scratch(verb)

    verb = _add(verbs, "stat", stat, "print statistics: classes, image sizes, mean and std")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("--json", action="store_true", help="print JSON")
    samples_help = "number of images for mean and std (default %(default)s)"
    verb.add_argument("--num-samples", type=positive, default=2000, help=samples_help)
    index_help = "also write the samples of each class, which recipe.class_balanced needs"
    verb.add_argument("--class-index", action="store_true", help=index_help)
    add_num_workers(verb)
    add_scratch(verb)

    verb = _add(verbs, "preview", preview, "draw stored images with their classes on one sheet")
    verb.add_argument("url", metavar="URL", help=URL_HELP)
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help=_PNG_HELP)
    verb.add_argument("--split", choices=_SPLITS, default="val", help="split (default val)")
    verb.add_argument("--num", type=positive, default=64, help="number of images (default 64)")
    verb.add_argument("--seed", type=int, help="seed of a random choice from the whole split")
    add_scratch(verb)


def add_augmented_preview(verbs: "Verbs") -> None:
    """Add `tahoe data preview`."""
    about = "draw training images as the network sees them, beside the stored ones"
    verb = _add(verbs, "preview", preview_augmented, about)
    verb.add_argument("overrides", nargs="*", metavar="OVERRIDES", help="as for `tahoe train`")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help=_PNG_HELP)
    verb.add_argument("--num", type=int, default=8, help="number of images (default 8)")
    verb.add_argument("--epochs", type=int, default=6, help="number of rows (default 6)")


def index(options: argparse.Namespace) -> int:
    """Write the manifests of existing shards."""
    from data_sharding.tools.find_shards import find_shards
    from data_sharding.tools.index import (
        classes_of_other_split,
        index_shards,
        read_class_names,
        write_manifests,
    )
    from orchestrator.cli.dataset import render

    rule = label_rule(options)
    shards = find_shards(options.url, options.split, options.tars)
    classes = read_class_names(options.classes) if options.classes else None
    other_classes = classes_of_other_split(options.url, shards)
    with render.progress_bar("reading", total=None) as on_progress:
        manifests, counts = index_shards(
            shards, rule, _read_options(options, on_progress), classes=classes or other_classes
        )
    is_written = write_manifests(options.url, shards, manifests, force=options.force)
    has_other = other_classes is not None
    render.print_index(options.url, manifests, counts, is_written=is_written, has_other=has_other)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a data set; return 1 if it has problems."""
    from data_sharding.format.manifest import read_manifests
    from data_sharding.tools.scan import DAMAGED
    from data_sharding.tools.verify import verify as verify_shards
    from orchestrator.cli.dataset import render

    total = sum(manifest.num_samples for manifest in read_manifests(options.url).values())
    with render.progress_bar("checking", total) as on_progress:
        read_options = _read_options(options, on_progress)
        report = verify_shards(options.url, read_options, decode=options.decode)
    show = render.print_verify_report_json if options.json else render.print_verify_report
    show(report)
    accepted = (DAMAGED,) if options.keep_damaged else ()
    return 1 if any(problem.fix not in accepted for problem in report.problems) else 0


def stat(options: argparse.Namespace) -> int:
    """Print the statistics of a data set."""
    from data_sharding.format.manifest import read_manifest, read_manifests
    from data_sharding.tools.stats import measure
    from orchestrator.cli.dataset import render

    stats = {}
    manifests = read_manifests(options.url)
    if options.class_index:
        read_manifest(options.url, "train")  # fails before the long work
    for split, manifest in manifests.items():
        with render.progress_bar(split, manifest.num_samples) as on_progress:
            read_options = _read_options(options, on_progress)
            stats[split] = measure(
                options.url, split, manifest, read_options, num_measured=options.num_samples
            )
    show = render.print_stats_json if options.json else render.print_stats
    show(options.url, manifests, stats)
    if options.class_index:
        _write_class_index(options.url, manifests["train"], stats["train"].first_labels)
    return 0


def preview(options: argparse.Namespace) -> int:
    """Draw a contact sheet of stored images."""
    from data_sharding.format.manifest import read_manifest
    from data_sharding.tools.preview import preview as draw
    from orchestrator.cli.dataset import render

    url, split = options.url, options.split
    manifest = read_manifest(url, split)
    sheet = draw(url, split, manifest, num=options.num, seed=options.seed, scratch=options.scratch)
    render.save_sheet(sheet, options.output)
    return 0


def preview_augmented(options: argparse.Namespace) -> int:
    """Draw a contact sheet of augmented training images, a row for each epoch."""
    from orchestrator.cli.dataset.render import save_sheet
    from orchestrator.config.parse import ConfigError
    from orchestrator.evaluation.augmented_views import draw_augmented_views
    from orchestrator.launch.compose import compose

    points = compose(options.overrides)
    if len(points) != 1 or min(options.num, options.epochs) < 1:
        raise ConfigError(
            f"a preview shows one config, one image and one epoch at least, not {len(points)}, "
            f"{options.num} and {options.epochs}; nothing was drawn",
            value=(len(points), options.num, options.epochs),
            hint="Give the overrides of a single run, and --num and --epochs of at least 1.",
        )
    save_sheet(draw_augmented_views(points[0].config, options.num, options.epochs), options.output)
    return 0


def _read_options(options: argparse.Namespace, on_progress: Callable[[int], None]) -> "ReadOptions":
    from data_sharding.tools.scan import ReadOptions

    return ReadOptions(options.scratch, options.num_workers, on_progress)


def _write_class_index(url: str, manifest: "Manifest", labels: "NDArray[np.int32]") -> None:
    from data_sharding.errors import DataError
    from data_sharding.sampling.class_balanced import write_class_index

    if manifest.labels.kind == "single" and labels.min() < 0:
        num_invalid = int((labels < 0).sum())
        raise DataError(
            f"{num_invalid:,} samples of {url} have no valid label, so no class index was written",
            value=num_invalid,
            hint="`tahoe shard verify` names them.",
        )
    write_class_index(url, "train", manifest, labels.tolist())


def _add(verbs: "Verbs", name: str, call: Call, help_text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    verb.set_defaults(call=call)
    return verb
