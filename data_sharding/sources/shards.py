"""Sources made of existing shards: those of others, merged data sets, a new validation split.

Shards on local disks are read in place. Remote ones are fetched whole to a scratch directory first,
since their samples are read in the order of the new shards.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from braceexpand import braceexpand

from data_sharding.format.class_map import ClassMap
from data_sharding.format.location import Location
from data_sharding.format.manifest import SPLITS, Manifest, read_manifest, read_manifests
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io import filesystem
from data_sharding.io.text import truncated_list
from data_sharding.scanning.scan import ReadOptions, Scan, scan_shards
from data_sharding.sources.base import Source, check_val_choice, choose_splits, source_error
from data_sharding.sources.shard_samples import ShardSamples
from data_sharding.tools.duplicate_shards import refuse_duplicates, refuse_equal_urls
from data_sharding.tools.expand_patterns import expand_glob
from data_sharding.tools.find_shards import (
    list_shards,
    listing,
    split_directories,
    warn_unused_tars,
)
from data_sharding.tools.index import choose_classes, resolve_classes, scan_splits
from data_sharding.tools.remarks import describe_scans, warn


def from_webdataset(
    urls: Sequence[str],
    rule: SampleRule,
    reading: ReadOptions,
    *,
    val_urls: Sequence[str] = (),
    val_fraction: float | None = None,
    num_folds: int | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    relabel: bool = False,
    class_map: ClassMap | None = None,
) -> Source:
    """List the samples of shards without manifests.

    Args:
        urls: shards (`{000..099}` and `*` are expanded), directories of them, or directories with
            train/ and val/.
        val_urls: the same for validation.
        val_fraction: alternative to `val_urls`: fraction of every class that becomes the validation
            split; the seed chooses the samples.
        num_folds: alternative to both: number of folds of equal size that all are dealt to.
        classes: names of the classes; see `index_shards`.
        relabel: whether the labels that occur in train are numbered from 0 on, in their order;
            `classes` then names these.
        class_map: the classes to keep, and their new labels.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for url in urls:
        for split, shards in _expand(url, "train").items():
            found[split] += shards
    for url in val_urls:
        found["val"] += chain.from_iterable(_expand(url, "val").values())
    refuse_equal_urls(chain.from_iterable(found.values()), "shard")
    check_val_choice(truncated_list(urls), bool(found["val"]), val_fraction, num_folds)
    reading = replace(reading, any_number=class_map is not None)
    scans = scan_splits(found, partial(_scan_to_keep, rule=rule, reading=reading))
    facts: dict[str, Any] = {"kind": "webdataset", "labels": str(rule.labels)}
    if rule.image is not None:
        facts["image"] = rule.image
    if class_map is not None:
        scans, names, rule = choose_classes(scans, rule, class_map, classes)
        label_map = _label_map(names, names)
        facts["class_map_sha256"] = class_map.sha256
    elif relabel:
        names, label_map = _renumber(scans, classes)
        facts["relabel"] = True
    else:
        has_labels = rule.labels.kind != "none"
        names = resolve_classes(scans, classes) if has_labels else tuple(classes or ())
        label_map = _label_map(names, names)
    label_maps = {split: [label_map] * len(split_scans) for split, split_scans in scans.items()}
    facts |= {"classes_sha256": _sha256(names), **_digests(scans)}
    source = _source(names, rule, scans, label_maps, facts)
    return source if found["val"] else _choose(source, val_fraction, num_folds, seed)


def resplit(
    url: str,
    only: str | None,
    reading: ReadOptions,
    *,
    val_fraction: float | None = None,
    num_folds: int | None = None,
    seed: int = 0,
) -> Source:
    """List the samples of a data set with a new validation split, or in folds.

    Args:
        only: the only split to take samples from; None takes both.
    """
    check_val_choice(url, False, val_fraction, num_folds)
    manifests = read_manifests(url) if only is None else {only: read_manifest(url, only)}
    first = next(iter(manifests.values()))
    _check_compatible(manifests, first)
    scans = _scan_known([(url, split, m) for split, m in manifests.items()], reading)
    label_maps = [_label_map(first.classes, first.classes)] * len(scans)
    facts = {"kind": "split", "of": sorted(manifests), **_digests({"shards": scans})}
    source = _source(first.classes, first.rule, {"train": scans}, {"train": label_maps}, facts)
    return _choose(source, val_fraction, num_folds, seed)


def merge(urls: Sequence[str], reading: ReadOptions, *, union_classes: bool = False) -> Source:
    """List the samples of several data sets, split by split.

    Args:
        union_classes: whether the sets may differ in classes. The result has those of the first,
            then what each of the others adds, and labels follow the names.
    """
    refuse_equal_urls(urls, "data set")
    sets = {url: read_manifests(url) for url in urls}
    manifests = {
        f"{url} {split}": m for url, by_split in sets.items() for split, m in by_split.items()
    }
    first = next(iter(manifests.values()))
    _check_compatible(manifests, first, any_classes=union_classes)
    classes = tuple(dict.fromkeys(name for m in manifests.values() for name in m.classes))
    scans, label_maps = {}, {}
    for split in SPLITS:
        parts = [
            (url, split, by_split[split]) for url, by_split in sets.items() if split in by_split
        ]
        if not parts:
            hint = "Choose a validation split first with `split` and `val_fraction`."
            raise source_error(f"none of {', '.join(sets)} has a {split} split", split, hint)
        scans[split] = _scan_known(parts, reading)
        label_maps[split] = [
            _label_map(classes, manifest.classes)
            for _, _, manifest in parts
            for _ in range(len(manifest.shards))
        ]
    facts = {"kind": "merge", "classes_sha256": _sha256(classes), **_digests(scans)}
    if any(manifest.classes != classes for manifest in manifests.values()):
        names = [name for m in manifests.values() for name in (*m.classes, "")]
        facts["classes_of_sets_sha256"] = _sha256(names)  # other names change what labels mean
    return _source(classes, first.rule, scans, label_maps, facts)


def _source(
    classes: tuple[str, ...],
    rule: SampleRule,
    scans: Mapping[str, Sequence[Scan]],
    label_maps: Mapping[str, Sequence[Mapping[int | str, int]]],
    facts: Mapping[str, Any],
) -> Source:
    refuse_duplicates({s: ((i.url, i.sha256) for i in found) for s, found in scans.items()})
    splits = {split: ShardSamples.of(scans[split], label_maps[split], rule) for split in scans}
    return Source(classes, splits, facts, rule.labels)


def _choose(source: Source, val_fraction: float | None, num_folds: int | None, seed: int) -> Source:
    samples = source.splits["train"]
    assert isinstance(samples, ShardSamples)
    splits, facts, notes = choose_splits(samples, source.classes, val_fraction, num_folds, seed)
    facts = {**source.fingerprint, **facts}
    return replace(source, splits=splits, fingerprint=facts, notes=notes)


def _expand(url: str, split: str) -> dict[str, list[str]]:
    """Return the shards at a URL: those of `split`, or of train and val if it has both."""
    if url.endswith(".tar"):
        return {split: [shard for pattern in braceexpand(url) for shard in expand_glob(pattern)]}
    directories = split_directories(url)
    by_split = {name: _list(filesystem.join(url, path)) for name, path in directories.items()}
    if by_split["train"]:
        warn_unused_tars(url, directories.values(), chain.from_iterable(by_split.values()))
        return by_split if split == "train" else {"val": by_split["val"] or by_split["train"]}
    if shards := _list(url):
        return {split: shards}
    with listing(url):
        names = truncated_list(filesystem.list_names(url))
    raise source_error(
        f"no shards at {url}, which " + (f"has {names}" if names else "is empty or missing"),
        url,
        "Give .tar files, a directory of them, or one with train/ and val/; unpack .tar.gz first.",
    )


def _list(directory: str) -> list[str]:
    return [filesystem.join(directory, name) for name in list_shards(directory)]


def _scan_known(parts: Sequence[tuple[str, str, Manifest]], reading: ReadOptions) -> list[Scan]:
    """Scan the shards of manifests, and refuse any that its manifest does not describe."""
    expected = [
        (Location(url).shard_url(split, shard.name), shard)
        for url, split, manifest in parts
        for shard in manifest.shards
    ]
    scans = _scan_to_keep([url for url, _ in expected], parts[0][2].rule, reading)
    warn("all", describe_scans(scans))
    for scan, (url, shard) in zip(scans, expected, strict=True):
        if scan.info(shard.digest) != shard:
            raise source_error(
                f"{url} is not the shard of the manifest: its samples, size or digest differ",
                url,
                "`verify` lists all that is wrong.",
            )
    return scans


def _scan_to_keep(urls: Sequence[str], rule: SampleRule, reading: ReadOptions) -> list[Scan]:
    return scan_shards(urls, rule, reading, keep_copies=True)


def _renumber(
    scans: Mapping[str, Sequence[Scan]], names: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Return the names of the labels in train, and the class index of each label."""
    by_split = {
        split: {v for s in split_scans for v in s.values} for split, split_scans in scans.items()
    }
    labels = sorted(value for value in by_split["train"] if isinstance(value, int))
    others = sorted(set().union(*by_split.values()) - {*labels}, key=str)
    if others or not labels:
        shown = truncated_list([repr(value) for value in others]) or "there are none"
        raise source_error(
            f"labels cannot be renumbered: all must be integers that occur in train ({shown})",
            others[0] if others else None,
            "Leave out `relabel`, or correct the shards.",
        )
    if names is not None and len(names) != len(labels):
        raise source_error(
            f"{len(names):,} names of classes are given, and {len(labels):,} labels occur",
            len(names),
            "With `relabel`, `classes` names the labels that occur, in their order.",
        )
    label_map: dict[int | str, int] = {label: index for index, label in enumerate(labels)}
    return tuple(map(str, labels)) if names is None else tuple(names), label_map


def _label_map(classes: Sequence[str], shard_classes: Sequence[str]) -> dict[int | str, int]:
    """Map names, and indices in `shard_classes`, to indices in `classes`."""
    by_name = {name: index for index, name in enumerate(classes)}
    label_map: dict[int | str, int] = {i: by_name[name] for i, name in enumerate(shard_classes)}
    return label_map | by_name


def _check_compatible(
    manifests: Mapping[str, Manifest], first: Manifest, *, any_classes: bool = False
) -> None:
    first_name = next(iter(manifests))
    for name, manifest in manifests.items():
        if manifest.rule != first.rule:
            raise source_error(
                f"samples of {name} are read as {manifest.rule}, and of {first_name} as "
                f"{first.rule}",
                name,
                "Convert one of them first with `webdataset`.",
            )
        if not any_classes and manifest.classes != first.classes:
            differing = sorted(set(manifest.classes) ^ set(first.classes))
            what = truncated_list([repr(x) for x in differing]) or "the same in another order"
            raise source_error(
                f"{name} has other classes than {first_name} ({what})",
                name,
                "`merge` with `union_classes` maps labels by the names of classes.",
            )


def _digests(scans: Mapping[str, Sequence[Scan]]) -> dict[str, str]:
    """Return a digest of the shards of each split."""
    return {f"{split}_sha256": _sha256([s.sha256 for s in found]) for split, found in scans.items()}


def _sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
