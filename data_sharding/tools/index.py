"""Manifests for shards that others have made: webdataset, img2dataset, plain tar.

The shards are read and not changed. Those that are not in `train/` or `val/`, where a data set has
its shards, get links there.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.class_map import MAX_CLASSES, ClassMap
from data_sharding.format.labels import refuse_unknown_labels, sorted_classes
from data_sharding.format.location import Location
from data_sharding.format.manifest import (
    PUBLISH_ORDER,
    Manifest,
    has_manifest,
    read_manifest,
    url_of,
    write_manifest,
)
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_digest import DigestKind
from data_sharding.format.shard_table import ShardTable
from data_sharding.io import filesystem
from data_sharding.io.text import pluralize
from data_sharding.scanning.resumable_scan import ScanRecords, scan_resumably
from data_sharding.scanning.scan import DEFAULT_OPTIONS, ReadOptions, Scan
from data_sharding.tools.duplicate_shards import refuse_duplicates
from data_sharding.tools.expand_patterns import listing_sha256
from data_sharding.tools.find_shards import FoundShards, listing
from data_sharding.tools.image_profile import with_profile
from data_sharding.tools.remarks import (
    describe_choice,
    describe_empty,
    describe_gaps,
    describe_runs,
    describe_scans,
    describe_untrained,
    warn,
)


def index_shards(
    shards: Mapping[str, FoundShards],
    rule: SampleRule,
    options: ReadOptions = DEFAULT_OPTIONS,
    *,
    classes: Sequence[str] | None = None,
    class_map: ClassMap | None = None,
) -> tuple[dict[str, Manifest], dict[str, Counter[str]]]:
    """Read all shards; return the manifests, and the samples of each class, by split.

    A shard without a sample of the chosen classes is left out.

    Args:
        classes: names of the classes, if known; else labels that are numbers name the classes
            themselves, from 0 on, and labels that are names are sorted.
    """
    source = {"kind": "index", "labels": str(rule.labels)}
    counts_suffice = class_map is None and rule.labels.kind != "multi"
    options = replace(
        options,
        any_number=class_map is not None,
        counted_classes=classes if counts_suffice else None,
    )
    scans = scan_splits(
        {split: s.urls for split, s in shards.items()},
        lambda urls: scan_resumably(urls, rule, options),
    )
    if class_map is not None:
        scans, names, rule = choose_classes(scans, rule, class_map, classes)
        source["class_map_sha256"] = class_map.sha256
    else:
        has_labels = rule.labels.kind != "none"
        names = resolve_classes(scans, classes) if has_labels else tuple(classes or ())
    labels = {split: _class_indices(split_scans, names) for split, split_scans in scans.items()}
    if rule.labels.kind == "single" and "train" in labels:
        warn("train", [describe_runs(labels["train"])])
    manifests = {
        split: Manifest(
            classes=names,
            labels=rule.labels,
            image=rule.image,
            class_labels=rule.class_labels,
            shards=_table(split_scans, shards[split]),
            source={**source, "listing_sha256": listing_sha256(shards[split].names)},
            samples_per_class=_samples_per_class(split_scans, labels[split], len(names))
            if rule.labels.kind == "multi"
            else None,
        )
        for split, split_scans in scans.items()
    }
    counts = {split: _count(split_labels, names) for split, split_labels in labels.items()}
    if "train" in counts and "val" in counts:
        warn("train", [describe_untrained(+counts["train"], +counts["val"])])
    return manifests, counts


def scan_splits(
    urls: Mapping[str, Sequence[str]], scan: Callable[[Sequence[str]], list[Scan]]
) -> dict[str, list[Scan]]:
    """Scan the shards of all splits at once, and log what is odd in them.

    Args:
        scan: a function from the URLs of shards to their scans.
    """
    scans = iter(scan([*chain.from_iterable(urls.values())]))
    by_split = {split: list(islice(scans, len(urls[split]))) for split in urls if urls[split]}
    for split, split_scans in by_split.items():
        warn(split, describe_scans(split_scans))
    return by_split


def choose_classes(
    scans: Mapping[str, Sequence[Scan]],
    rule: SampleRule,
    class_map: ClassMap,
    classes: Sequence[str] | None,
) -> tuple[dict[str, list[Scan]], tuple[str, ...], SampleRule]:
    """Keep the samples of some classes, and log how many others there are.

    Args:
        classes: names of all classes, if known.

    Returns:
        The shards that have some, the names of the new classes, and the rule that finds them.

    Raises:
        DataError: there are no labels, a class is none of the set, or no sample of it is left.
    """
    if rule.labels.kind == "none":
        raise DataError(
            f"{class_map.url} chooses classes, and the samples have no labels: nothing was written",
            value=class_map.url,
            hint="Choose the member that holds the class with `label`.",
        )
    values = {v for split_scans in scans.values() for s in split_scans for v in s.values}
    names, class_labels = class_map.resolve(classes, values)
    rule = replace(rule, class_labels=class_labels)
    kept = {}
    for split, split_scans in scans.items():
        chosen = [scan.of_classes(rule) for scan in split_scans]
        warn(split, [describe_choice(split_scans, chosen, rule)])
        kept[split] = [scan for scan in chosen if scan.num_samples]
        if not kept[split]:
            raise DataError(
                f"{split} has no sample of the {pluralize(len(names), 'class')} that "
                f"{class_map.url} chooses: nothing was written",
                value=class_map.url,
                hint="Check that its labels are those of this data set.",
            )
    warn("labels", [describe_empty(kept, names)])
    return kept, names, rule


def resolve_classes(
    scans: Mapping[str, Sequence[Scan]], given: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the classes that the labels of all splits refer to.

    Raises:
        DataError: no one list of classes fits all labels.
    """
    used = {
        split: {v for s in split_scans for v in s.values} for split, split_scans in scans.items()
    }
    every = set().union(*used.values())
    classes = tuple(given) if given is not None else _derive_classes(used.get("train") or every)
    if given is None:
        warn("labels", [describe_gaps(every)])
    for split, values in used.items():
        refuse_unknown_labels(split, values, classes)
    return classes


def write_manifests(
    where: str | Location,
    shards: Mapping[str, FoundShards],
    manifests: Mapping[str, Manifest],
    *,
    force: bool,
) -> bool:
    """Write manifests beside their shards, or where there is room; return False if they exist.

    Args:
        force: replace manifests that differ.

    Raises:
        DataError: a manifest differs, a shard occurs twice, or a file cannot be written.
    """
    location = Location.of(where)
    with listing(str(where)):
        existing = {s: read_manifest(where, s) for s in PUBLISH_ORDER if has_manifest(where, s)}
    both = {**existing, **manifests}
    refuse_duplicates({s: ((i.name, i.sha256) for i in m.shards) for s, m in both.items()})
    is_complete = True
    for split, manifest in manifests.items():
        old = existing.get(split)
        is_complete &= (
            old is not None
            and old.fingerprint == manifest.fingerprint
            and old.samples_per_class == manifest.samples_per_class
        )
        if old is not None and old.fingerprint != manifest.fingerprint and not force:
            raise _differs(url_of(where, split), old, manifest)
    if is_complete:
        return False
    for split in PUBLISH_ORDER:
        if split in manifests:
            _publish(location, split, shards[split], manifests[split])
    return True


def forget_scans(shards: Mapping[str, FoundShards], rule: SampleRule) -> None:
    """Remove the records of shards whose manifests are written."""
    ScanRecords(chain.from_iterable(s.urls for s in shards.values()), rule).remove()


def classes_of_other_split(
    where: str | Location, shards: Mapping[str, FoundShards]
) -> tuple[str, ...] | None:
    """Return the classes of a split that has a manifest and is not among `shards`."""
    others = (split for split in PUBLISH_ORDER if split not in shards)
    with listing(str(where)):
        other = next((split for split in others if has_manifest(where, split)), None)
    return None if other is None else read_manifest(where, other).classes


def known_classes(where: str | Location) -> tuple[str, ...] | None:
    """Return the names of all classes of a data set, if one of its manifests has them."""
    whole = replace(Location.of(where), rules="")
    with listing(str(whole)):
        splits = [split for split in PUBLISH_ORDER if has_manifest(whole, split)]
    manifests = (read_manifest(whole, split) for split in splits)
    return next((m.classes for m in manifests if m.class_labels is None), None)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the names of classes from a text file, one a line.

    Raises:
        DataError: it cannot be read, names no class or one twice, or has a blank line inside.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").rstrip().split("\n")]
        if not any(names):
            raise ValueError("it names no class")
        if "" in names:
            raise ValueError(f"line {names.index('') + 1} is blank")
        repeated = [name for name, num in Counter(names).items() if num > 1]
        if repeated:
            raise ValueError(f"it names {repeated[0]!r} twice")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is no list of classes: {error}. Nothing was written",
            value=path,
            hint="Give a UTF-8 text file with the name of a class on each line, class 0 first.",
        ) from error
    return tuple(names)


def _table(scans: Sequence[Scan], shards: FoundShards) -> ShardTable:
    kinds: tuple[DigestKind, ...] = "whole", "headers", "sampled"
    kind = next(kind for kind in kinds if all(scan.digest(kind) for scan in scans))
    names = dict(zip(shards.urls, shards.names, strict=True))
    return ShardTable.from_infos(replace(s.info(kind), name=names[s.url]) for s in scans)


def _class_indices(scans: Sequence[Scan], classes: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the class of each label, for each shard."""
    indices = {name: index for index, name in enumerate(classes)}
    return [
        np.array([v if isinstance(v, int) else indices[v] for v in s.values], np.int64)[s.codes]
        for s in scans
    ]


def _count(labels: Sequence[NDArray[np.int64]], classes: Sequence[str]) -> Counter[str]:
    """Count the samples of each class, also of those without samples."""
    if not any(map(len, labels)):  # they were not read
        return Counter()
    counts = np.bincount(np.concatenate(labels), minlength=len(classes))
    return Counter(dict(zip(classes, counts.tolist(), strict=True)))


def _samples_per_class(
    scans: Sequence[Scan], labels: Sequence[NDArray[np.int64]], num_classes: int
) -> tuple[int, ...]:
    """Count the samples that show each class; a sample that has a label twice counts once."""
    total = np.zeros(num_classes, dtype=np.int64)
    for scan, indices in zip(scans, labels, strict=True):
        samples = np.repeat(np.arange(scan.num_samples), scan.num_labels)
        distinct = np.unique(samples * num_classes + indices)
        total += np.bincount(distinct % num_classes, minlength=num_classes)
    return tuple(total.tolist())


def _derive_classes(values: set[int | str]) -> tuple[str, ...]:
    numbers = [value for value in values if isinstance(value, int)]
    if not numbers:
        return sorted_classes(str(value) for value in values)
    if len(numbers) != len(values):
        name = next(value for value in values if isinstance(value, str))
        raise DataError(
            f"some labels are numbers ({numbers[0]}) and some are names ({name!r}), so classes "
            "cannot be numbered: nothing was written",
            value=name,
            hint="List the classes in `classes`.",
        )
    if max(numbers) >= MAX_CLASSES:
        raise DataError(
            f"the labels go up to {max(numbers)}, which is too many classes: nothing was written",
            value=max(numbers),
            hint="Choose the field that holds the class with `label`.",
        )
    return tuple(str(number) for number in range(max(numbers) + 1))


def _publish(location: Location, split: str, shards: FoundShards, manifest: Manifest) -> None:
    try:
        if shards.url != location.base(split):
            _link(shards, location.base(split))
        profiled = with_profile(location, split, manifest)
        write_manifest(location, split, profiled, anywhere=True)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"cannot write {url_of(location, split)}: {type(error).__name__}: {error}. The shards "
            "were not changed",
            value=url_of(location, split),
            hint="Name the shards of each split where they are, with `train` and `val` instead of "
            "`url`, or a directory for their manifests with `manifest`.",
        ) from error


def _link(shards: FoundShards, directory: str) -> None:
    """Make relative links in a local directory to shards of another one."""
    path, other = filesystem.local_path(directory), filesystem.local_path(shards.url)
    assert path is not None
    assert other is not None
    path.mkdir(exist_ok=True)
    for name in shards.names:
        (path / name).symlink_to(os.path.relpath(other / name, path))


def _differs(url: str, old: Manifest, new: Manifest) -> DataError:
    described = [
        f"{pluralize(len(m.shards), 'shard')}, {pluralize(m.num_samples, 'sample')}, "
        f"{pluralize(len(m.classes), 'class')} ({', '.join(m.classes[:3])}, ...), read as {m.rule}"
        for m in (old, new)
    ]
    what = f"It lists {described[0]}, and there are {described[1]}"
    if described[0] == described[1]:
        what = f"Both are {described[0]}, and digests differ: other bytes, or other ones compared"
    others = ""
    if old.rule != new.rule:
        others = (
            "Another choice of samples has a manifest of its own, beside this one, if the "
            "overrides of `data` give it. "
        )
    return DataError(
        f"{url} differs from the shards. {what}. It was not changed",
        value=url,
        hint=others + "If the shards were changed on purpose, replace it with `force`.",
    )
