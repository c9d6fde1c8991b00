"""Data sets made of shards that exist: resharded, merged, or split anew.

Each is a source like a directory of images is one. Shards are read where they lie on local disks;
remote ones are fetched whole to a scratch directory first, since their samples are read in the
order of the new shards.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import SPLITS, Manifest, read_manifest
from data_sharding.io import filesystem
from data_sharding.sources.base import Source
from data_sharding.sources.shard_samples import ShardSamples, split_off
from data_sharding.tools.duplicate_shards import refuse_repeated, refuse_same_places
from data_sharding.tools.find_shards import (
    list_shards,
    reaching,
    split_directories,
    warn_unused_tars,
)
from data_sharding.tools.index import resolve_classes
from data_sharding.tools.scan import Scan, Target, scan_shards
from data_sharding.tools.scan_warnings import describe_scans, warn
from data_sharding.tools.verify import read_manifests


@dataclass(frozen=True)
class ReadOptions:
    """How shards are read to begin with.

    Args:
        scratch: an empty directory, for copies of remote shards; the source needs them to the end.
        on_progress: called now and then with the number of samples seen.
    """

    scratch: Path
    num_workers: int = 1
    on_progress: Callable[[int], None] = lambda done: None


@dataclass(frozen=True)
class ValSplit:
    """A share of every class that becomes the validation split; the seed says which samples."""

    fraction: float
    seed: int


def from_webdataset(
    urls: Sequence[str],
    rule: LabelRule,
    reading: ReadOptions,
    *,
    val_urls: Sequence[str] = (),
    val: ValSplit | None = None,
    classes: Sequence[str] | None = None,
    relabel: bool = False,
) -> Source:
    """Shards that others have made.

    Args:
        urls: of shards (`{000..099}` and `*` are expanded), of directories of them, or of
            directories with train/ and val/.
        val_urls: likewise, of shards for validation.
        classes: their names; see index_shards.
        relabel: number the labels that occur in train from 0 on, in their order; `classes` are
            their names then.

    Raises:
        DataError: there are no shards, something in them cannot be used, or nothing says which
            samples are for validation.
    """
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for url in urls:
        for split, shards in _expand(url, "train").items():
            found[split] += shards
    for url in val_urls:
        found["val"] += chain.from_iterable(_expand(url, "val").values())
    refuse_same_places(chain.from_iterable(found.values()), "shard")
    _check_val(bool(found["val"]), val, f"--val-fraction {val.fraction}" if val else "")
    scans = _scan(found, rule, reading)
    _refuse_repeated(scans)
    facts: dict[str, Any] = {"kind": "webdataset", "labels": str(rule)}
    if relabel:
        names, numbers = _renumber(scans, classes)
        facts["relabel"] = True
    else:
        names = tuple(classes or ()) if rule.kind == "none" else resolve_classes(scans, classes)
        numbers = _numbers_in(names, names)
    samples = {
        split: ShardSamples.of(mine, [numbers] * len(mine), rule) for split, mine in scans.items()
    }
    facts["classes_sha256"] = _digest(names)
    return _source(names, samples, rule, val, {**facts, **_digests(scans)})


def resplit(url: str, only: str | None, reading: ReadOptions, *, val: ValSplit) -> Source:
    """A data set whose validation split is chosen anew.

    Args:
        only: the only split to take samples from; None takes all there are.

    Raises:
        DataError: there is no such data set, or it is not what its manifests say.
    """
    manifests = read_manifests(url) if only is None else {only: read_manifest(url, only)}
    first = next(iter(manifests.values()))
    _check_alike(manifests, first)
    scans = _scan_known([(url, split, m) for split, m in manifests.items()], reading)
    numbers = _numbers_in(first.classes, first.classes)
    samples = ShardSamples.of(scans, [numbers] * len(scans), first.labels)
    facts = {"kind": "split", "of": sorted(manifests), **_digests({"shards": scans})}
    _refuse_repeated({"the set": scans})
    return _source(first.classes, {"train": samples}, first.labels, val, facts)


def merge(urls: Sequence[str], reading: ReadOptions, *, union_classes: bool = False) -> Source:
    """The samples of several data sets, split by split.

    Args:
        union_classes: let the sets have other classes: those of the first, then what each of the
            others adds. Labels follow the names.

    Raises:
        DataError: the sets do not go together, one is given twice, or is not what its manifests
            say.
    """
    refuse_same_places(urls, "data set")
    sets = {url: read_manifests(url) for url in urls}
    manifests = {f"{url} {split}": m for url, mine in sets.items() for split, m in mine.items()}
    first = next(iter(manifests.values()))
    _check_alike(manifests, first, classes_too=not union_classes)
    classes = tuple(dict.fromkeys(name for m in manifests.values() for name in m.classes))
    samples, scans = {}, {}
    for split in SPLITS:
        parts = [(url, split, mine[split]) for url, mine in sets.items() if split in mine]
        if not parts:
            raise DataError(
                f"none of {', '.join(sets)} has a {split} split, and a data set needs one: nothing "
                "was written. Choose one first: `tahoe shard split URL OUT --val-fraction 0.1`."
            )
        scans[split] = _scan_known(parts, reading)
        numbers = [
            _numbers_in(classes, manifest.classes)
            for _, _, manifest in parts
            for _ in range(len(manifest.shards))
        ]
        samples[split] = ShardSamples.of(scans[split], numbers, first.labels)
    _refuse_repeated(scans)
    facts = {"kind": "merge", "classes_sha256": _digest(classes), **_digests(scans)}
    if any(manifest.classes != classes for manifest in manifests.values()):
        named = [name for m in manifests.values() for name in (*m.classes, "")]
        facts["classes_of_sets_sha256"] = _digest(named)  # equal labels mean others elsewhere
    return _source(classes, samples, first.labels, None, facts)


def _source(
    classes: tuple[str, ...],
    samples: Mapping[str, ShardSamples],
    rule: LabelRule,
    val: ValSplit | None,
    facts: Mapping[str, Any],
) -> Source:
    notes: tuple[str, ...] = ()
    if val is not None:
        pool = samples["train"]
        in_val, notes = split_off(pool, classes, val.fraction, val.seed)
        samples = {"train": pool.where(~in_val), "val": pool.where(in_val)}
        facts = {**facts, "val_fraction": val.fraction, "val_seed": val.seed}
    sizes = {split: mine.num_bytes for split, mine in samples.items()}
    return Source(classes, samples, facts, labels=rule, num_bytes=sizes, notes=notes)


def _expand(url: str, split: str) -> dict[str, list[str]]:
    """Return the shards that a URL means: those of `split`, or of train and val if it has both."""
    if url.endswith(".tar"):
        shards = [shard for pattern in braceexpand(url) for shard in _glob(pattern)]
        return {split: shards}
    directories = split_directories(url)
    by_split = {name: _list(filesystem.join(url, mine)) for name, mine in directories.items()}
    if by_split["train"]:
        warn_unused_tars(url, directories.values(), chain.from_iterable(by_split.values()))
        return by_split if split == "train" else {"val": by_split["val"] or by_split["train"]}
    flat = _list(url)
    if not flat:
        with reaching(url):
            there = ", ".join(filesystem.list_names(url)[:5])
        raise DataError(
            f"no shards at {url}: " + (f"it holds {there}" if there else "nothing is there") + ". "
            "Nothing was written: give .tar files, a directory of them, or one with train/ and "
            "val/ (unpack .tar.gz first)."
        )
    return {split: flat}


def _glob(pattern: str) -> list[str]:
    if "*" not in pattern and "?" not in pattern:
        return [pattern]
    with reaching(pattern):
        if filesystem.exists(pattern):
            return [pattern]
        fs, path = filesystem.store_of(pattern)
        names = sorted(fs.glob(path.replace("[", "[[]")))
        found = [fs.unstrip_protocol(name) for name in names]
    if not found:
        raise DataError(f"no shards match {pattern}: nothing was written. Check the pattern.")
    return [str(filesystem.local_path(url) or url) for url in found]


def _list(directory: str) -> list[str]:
    return [filesystem.join(directory, name) for name in list_shards(directory)]


def _scan(
    found: Mapping[str, Sequence[str]], rule: LabelRule, reading: ReadOptions
) -> dict[str, list[Scan]]:
    """Read the shards of all splits at once; return what was found in each."""
    targets = {
        split: [_target(url, reading) for url in urls] for split, urls in found.items() if urls
    }
    scans = iter(
        scan_shards(
            [*chain.from_iterable(targets.values())],
            rule,
            num_workers=reading.num_workers,
            on_progress=reading.on_progress,
        )
    )
    by_split = {split: [next(scans) for _ in mine] for split, mine in targets.items()}
    for split, mine in by_split.items():
        warn(split, describe_scans(mine))
    return by_split


def _scan_known(parts: Sequence[tuple[str, str, Manifest]], reading: ReadOptions) -> list[Scan]:
    """Read the shards of manifests, which must be what these say."""
    expected = [
        (filesystem.join(url, split, shard.name), shard)
        for url, split, manifest in parts
        for shard in manifest.shards
    ]
    rule = parts[0][2].labels
    scans = _scan({"all": [url for url, _ in expected]}, rule, reading)["all"]
    for scan, (url, shard) in zip(scans, expected, strict=True):
        if scan.info != shard:
            raise DataError(
                f"{url} is not the shard of the manifest: its samples, size or digest differ. "
                "Nothing was written: `tahoe shard verify` lists all that is wrong."
            )
    return scans


def _target(url: str, reading: ReadOptions) -> Target:
    path = filesystem.local_path(url)
    if path is not None:
        return Target(str(path))
    return Target(url, reading.scratch / f"{_digest([url])}.tar")


def _renumber(
    scans: Mapping[str, Sequence[Scan]], given: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Return the names of the labels that train has, and which class each of them is."""
    by_split = {split: {v for scan in mine for v in scan.values} for split, mine in scans.items()}
    used = sorted(value for value in by_split["train"] if isinstance(value, int))
    lacking = sorted(set().union(*by_split.values()) - {*used}, key=str)
    if lacking or not used:
        raise DataError(
            f"--relabel numbers the labels of train, which are numbers then, and these are none: "
            f"{', '.join(map(repr, lacking[:5])) or 'there are no labels'}. Nothing was written: "
            "leave --relabel out, or mend the shards."
        )
    if given is not None and len(given) != len(used):
        raise DataError(
            f"--classes names {len(given):,} classes, and {len(used):,} labels occur: nothing was "
            "written. With --relabel, name the labels that occur, in their order."
        )
    names = tuple(given) if given is not None else tuple(map(str, used))
    return names, {value: number for number, value in enumerate(used)}


def _numbers_in(classes: Sequence[str], mine: Sequence[str]) -> dict[int | str, int]:
    """Return the number of a class among `classes`, by its name or its number among `mine`."""
    by_name = {name: number for number, name in enumerate(classes)}
    numbers: dict[int | str, int] = {n: by_name[name] for n, name in enumerate(mine)}
    numbers.update(by_name)
    return numbers


def _check_val(has_val: bool, val: ValSplit | None, given: str) -> None:
    if has_val and val is not None:
        raise DataError(
            f"there are shards for validation, and {given} asks to choose from all there is: "
            "nothing was written. Leave one of them out."
        )
    if not has_val and val is None:
        raise DataError(
            "nothing says which samples are for validation: nothing was written. Let Tahoe choose "
            "some of every class (--val-fraction 0.1), or name their shards (--val URL)."
        )


def _check_alike(
    manifests: Mapping[str, Manifest], first: Manifest, *, classes_too: bool = True
) -> None:
    for name, manifest in manifests.items():
        if manifest.labels != first.labels:
            raise DataError(
                f"{name} has labels that are {manifest.labels}, and {next(iter(manifests))} has "
                f"{first.labels}: they cannot be one data set, so nothing was written. Make both "
                "alike first: `tahoe shard webdataset`."
            )
        if classes_too and manifest.classes != first.classes:
            differing = sorted(set(manifest.classes) ^ set(first.classes))
            what = ", ".join(map(repr, differing[:5])) or "the same in another order"
            raise DataError(
                f"{name} has other classes than {next(iter(manifests))} ({what}): nothing was "
                "written. `tahoe shard merge --union-classes` maps labels by the names of classes."
            )


def _refuse_repeated(scans: Mapping[str, Sequence[Scan]]) -> None:
    refuse_repeated({s: ((i.target.url, i.sha256) for i in mine) for s, mine in scans.items()})


def _digests(scans: Mapping[str, Sequence[Scan]]) -> dict[str, str]:
    """Return a digest of the shards of each split: equal digests, equal samples."""
    return {
        f"{split}_sha256": _digest([scan.sha256 for scan in mine]) for split, mine in scans.items()
    }


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
