"""`tahoe shard index|verify|stat|preview`: inspect a data set."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator.cli.dataset.arguments import (
    compose_data,
    locate,
    location_argument,
    num_workers_option,
    sample_options,
    sample_rule,
    scratch_option,
)
from orchestrator.cli.shared.arguments import (
    PATH,
    POSITIVE,
    SPLIT,
    flag,
    json_option,
    overrides_argument,
)
from orchestrator.cli.shared.commands import Command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from data_sharding.format.class_map import ClassMap
    from data_sharding.format.location import Location
    from data_sharding.format.manifest import Manifest
    from data_sharding.format.sample_rule import SampleRule
    from data_sharding.scanning.scan import ReadOptions
    from orchestrator.config.schema import Data


@click.command(cls=Command)
@location_argument
@click.option(
    "--split",
    type=SPLIT,
    help="the only split to index; its shards may be in URL itself, and are linked then",
)
@click.option("--tars", default="*.tar", metavar="PATTERN", help="names of the shards")
@sample_options
@click.option(
    "--read",
    type=click.Choice(["auto", "whole", "headers"]),
    default="auto",
    help="bytes of the shards to read: all, headers and labels, or (of remote ones) the cheaper",
)
@flag("--force", help="replace a manifest that differs")
@num_workers_option()
@scratch_option
def index(
    where: tuple[str, ...],
    split: str | None,
    tars: str,
    image: str | None,
    class_map: str | None,
    label: str | None,
    multi_label: bool,
    classes: Path | None,
    read: Literal["auto", "whole", "headers"],
    force: bool,
    num_workers: int,
    scratch: str | None,
) -> None:
    """Write the manifests of existing shards."""
    from data_sharding.format.class_map import read_class_map
    from data_sharding.format.location import Location
    from data_sharding.scanning.scan import ReadOptions
    from data_sharding.tools.index import read_class_names

    given = {"image": image, "label": label, "multi_label": multi_label, "class_map": class_map}
    if data := compose_data(where):
        if options := [name for name, value in given.items() if value]:
            keys = ", ".join(f"data.{name}" for name in options)
            raise click.UsageError(f"With overrides, give {keys} among them, not as an option.")
        if tars != "*.tar":
            raise click.UsageError("With overrides, data.train and data.val name the shards.")
        rule, class_map, location = data.samples.rule, data.class_map, data.location
    else:
        rule, location = sample_rule(image, label, multi_label=multi_label), Location(where[0])
    run = partial(
        _index_splits,
        tars=tars,
        rule=rule,
        reading=ReadOptions(
            scratch, num_workers, what=read, on_message=partial(click.echo, err=True)
        ),
        class_map=read_class_map(class_map) if class_map else None,
        force=force,
    )
    names = read_class_names(classes) if classes else None
    if data and data.mix:
        _index_mix(data, names, split, run, force=force)
    else:
        run(location, split, names)


def _index_mix(
    data: "Data",
    names: Sequence[str] | None,
    only: str | None,
    run: Callable[..., None],
    *,
    force: bool,
) -> None:
    """Index the splits of a mixture that have no manifest; without names, those of the first."""
    from data_sharding.format.manifest import has_manifest, read_manifest

    first, *others = [(place, "train") for place in data.train_locations]
    for place, split in dict.fromkeys([first, *others, (data.location, "val")]):
        if only not in (None, split):
            continue
        if force or not has_manifest(place, split):
            known = has_manifest(*first) and data.class_map is None
            classes = read_manifest(*first).classes if known else None
            run(place, split, names or classes, is_part=True)
        else:
            click.echo(f"{place}: {split} has its manifest")


def _index_splits(
    location: "Location",
    split: str | None,
    names: Sequence[str] | None,
    *,
    tars: str,
    rule: "SampleRule",
    reading: "ReadOptions",
    class_map: "ClassMap | None",
    force: bool,
    is_part: bool = False,
) -> None:
    """Index the splits of a data set.

    Args:
        is_part: whether a run needs no other split of it.
    """
    from data_sharding.tools.expand_patterns import find_named_shards
    from data_sharding.tools.find_shards import find_shards
    from data_sharding.tools.index import (
        classes_of_other_split,
        forget_scans,
        index_shards,
        known_classes,
        write_manifests,
    )
    from orchestrator.cli.dataset import render

    if location.url is None or location.rules:
        shards = find_named_shards(location, [split] if split else location.splits)
    else:
        shards = find_shards(location.url, split, tars)
    other_names = classes_of_other_split(location, shards)
    names = names or (known_classes(location) if class_map else other_names)
    with render.progress_bar("reading", total=None) as on_progress:
        reading = replace(reading, on_progress=on_progress)
        manifests, counts = index_shards(shards, rule, reading, classes=names, class_map=class_map)
    is_written = write_manifests(location, shards, manifests, force=force)
    forget_scans(shards, rule)
    has_other = is_part or other_names is not None
    render.print_index(str(location), manifests, counts, is_written=is_written, has_other=has_other)


@click.command(cls=Command)
@location_argument
@flag("--no-decode", help="do not decode the images")
@flag("--keep-damaged", help="accept images that decode with damage, but list them")
@json_option
@num_workers_option()
@scratch_option
def verify(
    where: tuple[str, ...],
    no_decode: bool,
    keep_damaged: bool,
    as_json: bool,
    num_workers: int,
    scratch: str | None,
) -> int:
    """Check every shard, label and image of a data set."""
    from data_sharding.format.manifest import read_manifests
    from data_sharding.scanning.scan import DAMAGED, ReadOptions
    from data_sharding.tools import verify as verifier
    from orchestrator.cli.dataset import render

    location = locate(where)
    total = sum(manifest.num_samples for manifest in read_manifests(location).values())
    with render.progress_bar("checking", total) as on_progress:
        reading = ReadOptions(scratch, num_workers, on_progress)
        report = verifier.verify(location, reading, decode=not no_decode)
    show = render.print_verify_report_json if as_json else render.print_verify_report
    show(report)
    accepted = (DAMAGED,) if keep_damaged else ()
    return 1 if any(problem.fix not in accepted for problem in report.problems) else 0


@click.command(cls=Command)
@location_argument
@json_option
@click.option(
    "--num-samples", type=POSITIVE, default=2000, help="number of images for mean and std"
)
@click.option(
    "-o", "--output", type=PATH, metavar="YAML", help="config to write, e.g. conf/data/mine.yaml"
)
@flag("--class-index", help="also write the index that recipe.class_balanced needs")
@num_workers_option()
@scratch_option
def stat(
    where: tuple[str, ...],
    as_json: bool,
    num_samples: int,
    output: Path | None,
    class_index: bool,
    num_workers: int,
    scratch: str | None,
) -> None:
    """Print statistics: classes, image sizes, mean and std, and propose a config."""
    from data_sharding.format.location import Location
    from data_sharding.format.manifest import read_manifest, read_manifests
    from data_sharding.scanning.scan import ReadOptions
    from data_sharding.tools.stats import measure
    from orchestrator.cli.dataset import proposal, render

    stats = {}
    if output:
        proposal.check_output(output)
    data = compose_data(where)
    location = data.location if data else Location(where[0])
    manifests = read_manifests(location)
    if class_index or output:
        read_manifest(location, "train")  # fails before the long work
    for split, manifest in manifests.items():
        with render.progress_bar(split, manifest.num_samples) as on_progress:
            reading = ReadOptions(scratch, num_workers, on_progress)
            stats[split] = measure(location, split, manifest, reading, num_measured=num_samples)
    show = render.print_stats_json if as_json else render.print_stats
    name = output.stem if output else None
    config = proposal.propose_config(data or where[0], next(iter(stats.values())), name)
    show(str(location), manifests, stats, config)
    if output and config:
        proposal.write_config(output, config)
    if class_index:
        _write_class_index(location, manifests["train"], stats["train"].first_labels)


def _write_class_index(
    location: "Location", manifest: "Manifest", labels: "NDArray[np.int32]"
) -> None:
    from data_sharding.errors import DataError
    from data_sharding.sampling.class_balanced import write_class_index

    if manifest.labels.kind == "single" and labels.min() < 0:
        num_invalid = int((labels < 0).sum())
        raise DataError(
            f"{num_invalid:,} samples of {location} have no valid label, so no class index was "
            "written",
            value=num_invalid,
            hint="`tahoe shard verify` names them.",
        )
    write_class_index(location, "train", manifest, labels.tolist())


@click.command(cls=Command)
@overrides_argument("data set: its URL, or overrides of the config", "URL|OVERRIDES...")
@click.option("-o", "--output", type=PATH, required=True, metavar="PNG", help="picture to write")
@flag("--augmented", help="training images as the network sees them, a row an epoch")
@click.option("--num", type=POSITIVE, show_default="64, or 8 augmented", help="number of images")
@click.option("--epochs", type=POSITIVE, show_default="6", help="number of rows, with --augmented")
@click.option("--split", type=SPLIT, show_default="val", help="split of stored images")
@click.option("--seed", type=int, help="seed of a random choice of stored images")
@scratch_option
def preview(
    overrides: tuple[str, ...],
    output: Path,
    augmented: bool,
    num: int | None,
    epochs: int | None,
    **stored: Any,
) -> None:
    """Draw stored images with their classes, or augmented ones."""
    from orchestrator.cli.dataset.render import save_sheet

    excluded = stored if augmented else {"epochs": epochs}
    for name, value in excluded.items():
        if value is not None:
            state = "exclude each other" if augmented else "needs --augmented"
            raise click.UsageError(f"--{name} {'and --augmented ' * augmented}{state}.")
    if augmented:
        save_sheet(_draw_augmented(overrides, num or 8, epochs or 6), output)
    else:
        save_sheet(_draw_stored(locate(overrides), num or 64, **stored), output)


def _draw_stored(
    location: "Location", num: int, split: str | None, seed: int | None, scratch: str | None
) -> "Image.Image":
    from data_sharding.format.manifest import read_manifest
    from data_sharding.tools.preview import preview as draw

    split = split or "val"
    manifest = read_manifest(location, split)
    return draw(location, split, manifest, num=num, seed=seed, scratch=scratch)


def _draw_augmented(overrides: Sequence[str], num: int, epochs: int) -> "Image.Image":
    from orchestrator.config.parse import ConfigError
    from orchestrator.evaluation.augmented_views import draw_augmented_views
    from orchestrator.launch.compose import compose

    points = compose(overrides)
    if len(points) != 1:
        raise ConfigError(
            f"a preview shows one config, not {len(points)}; nothing was drawn",
            value=len(points),
            hint="Give the overrides of a single run.",
        )
    return draw_augmented_views(points[0].config, num, epochs)
