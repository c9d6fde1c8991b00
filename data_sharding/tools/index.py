"""Manifests for shards that others have made: webdataset, img2dataset, plain tar.

The shards are read and left as they are. Where they lie flat in a local directory, or in one that
is called otherwise (`valid/`), links to them are made in `train/` or `val/`, which is where a data
set has its shards.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.label_checks import describe_gaps, describe_runs, describe_untrained
from data_sharding.format.labels import LabelRule, sorted_classes
from data_sharding.format.manifest import (
    PUBLISH_ORDER,
    SPLITS,
    Manifest,
    read_manifest,
    url_of,
    write_manifest,
)
from data_sharding.format.shard_table import ShardTable
from data_sharding.io import filesystem
from data_sharding.io.text import pluralize
from data_sharding.tools.duplicate_shards import refuse_repeated
from data_sharding.tools.find_shards import (
    list_shards,
    reaching,
    split_directories,
    warn_unused_tars,
)
from data_sharding.tools.scan import Scan, Target, scan_shards
from data_sharding.tools.scan_warnings import describe_scans, warn

_MAX_CLASSES = 1 << 20  # a number above is an id of something, not of a class
_SHARD_NAME = re.compile(r"[A-Za-z0-9._-]+\.tar")
_SHOWN = 5
_SPLIT_WORDS = {
    "train": frozenset(("train", "training")),
    "val": frozenset(("val", "valid", "validation", "dev", "eval", "test", "testing")),
}


@dataclass(frozen=True)
class FoundShards:
    """The shards of a split: where they lie, and whether links to them are needed."""

    url: str  # of the directory that holds them
    names: tuple[str, ...]
    is_elsewhere: bool

    @property
    def targets(self) -> list[Target]:
        return [Target(filesystem.join(self.url, name)) for name in self.names]


def find_shards(url: str, split: str | None, pattern: str = "*.tar") -> dict[str, FoundShards]:
    """Return the shards of each split at a URL: URL/train/*.tar and URL/val/*.tar.

    Args:
        split: only this one; its shards may lie flat in URL then.
        pattern: of the shards' names, as in a shell.

    Raises:
        DataError: there are none, or their names cannot be those of shards; it says what is there.
    """
    found = {}
    with reaching(url):
        is_local = filesystem.local_path(url) is not None
    directories = split_directories(url) if is_local else {name: name for name in PUBLISH_ORDER}
    for name in PUBLISH_ORDER if split is None else (split,):
        directory = filesystem.join(url, directories[name])
        names = list_shards(directory, pattern)
        if names:
            found[name] = FoundShards(directory, names, is_elsewhere=directories[name] != name)
    if not found and split is not None:
        names = list_shards(url, pattern)
        found = {split: FoundShards(url, names, is_elsewhere=True)} if names else {}
        _check_flat(url, split, names, pattern)
    if not found:
        raise _no_shards(url, split, pattern)
    for split_found in found.values():
        _check_names(split_found)
    if not any(split_found.url == url for split_found in found.values()):
        warn_unused_tars(
            url, directories.values(), [t.url for f in found.values() for t in f.targets]
        )
    return found


def index_shards(
    found: Mapping[str, FoundShards],
    rule: LabelRule,
    *,
    classes: Sequence[str] | None,
    num_workers: int,
    scratch: str | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Manifest], dict[str, Counter[str]]]:
    """Read all shards once; return the manifests, and the samples of each class, by split.

    Args:
        classes: their names, if they are known; else labels that are numbers name the classes
            themselves, from 0 on, and labels that are names are sorted.
        scratch: the directory for copies of remote shards.
        on_progress: called now and then with the number of samples read.

    Raises:
        DataError: something in the shards cannot be used, or the splits have other classes.
    """
    targets = [target for split in found.values() for target in split.targets]
    scans = scan_shards(
        targets, rule, num_workers=num_workers, scratch=scratch, on_progress=on_progress
    )
    rest = iter(scans)
    by_split = {split: [next(rest) for _ in shards.names] for split, shards in found.items()}
    names = resolve_classes(by_split, classes) if rule.kind != "none" else tuple(classes or ())
    for split, mine in by_split.items():
        warn(split, describe_scans(mine))
    if rule.kind == "single":
        warn("train", [describe_runs(_labels(by_split.get("train", ()), names))])
    manifests = {
        split: Manifest(
            classes=names,
            labels=rule,
            shards=ShardTable.from_infos(scan.info for scan in mine),
            source={"kind": "index", "labels": str(rule)},
        )
        for split, mine in by_split.items()
    }
    counts = {split: _count(mine, names) for split, mine in by_split.items()}
    if len(counts) == len(SPLITS):
        warn("train", [describe_untrained(+counts["train"], +counts["val"])])
    return manifests, counts


def _labels(scans: Sequence[Scan], classes: Sequence[str]) -> list[NDArray[np.int64]]:
    """Return the class of each sample, for each shard."""
    numbers: dict[int | str, int] = {name: n for n, name in enumerate(classes)}
    return [np.array([numbers.get(v, v) for v in scan.values])[scan.codes] for scan in scans]


def resolve_classes(
    scans: Mapping[str, Sequence[Scan]], given: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the classes that the labels of the splits mean.

    Raises:
        DataError: there is no one set of classes that all labels fit.
    """
    used = {split: {v for scan in mine for v in scan.values} for split, mine in scans.items()}
    basis = used.get("train") or set().union(*used.values())
    classes = tuple(given) if given is not None else _derive(basis)
    if given is None:
        warn("labels", [describe_gaps(set().union(*used.values()))])
    known = {*classes, *range(len(classes))}
    for split, values in used.items():
        unknown = sorted(values - known, key=str)
        if unknown:
            raise DataError(_unknown_classes(split, unknown, len(classes)))
    return classes


def write_manifests(
    url: str, found: Mapping[str, FoundShards], manifests: Mapping[str, Manifest], *, force: bool
) -> bool:
    """Write manifests beside their shards; return False if equal ones are there already.

    Args:
        force: replace manifests that say something else.

    Raises:
        DataError: a manifest says something else, a shard is in the other split too, or twice in
            its own, or links to the shards cannot be made.
    """
    with reaching(url):
        there = {
            s: read_manifest(url, s) for s in PUBLISH_ORDER if filesystem.exists(url_of(url, s))
        }
    refuse_repeated(
        {s: ((i.name, i.sha256) for i in m.shards) for s, m in {**there, **manifests}.items()}
    )
    there = {split: there[split] for split in manifests if split in there}
    differing = [split for split in there if not _agree(there[split], manifests[split])]
    if differing and not force:
        raise DataError(_other_manifest(url, there, manifests, differing[0]))
    if set(there) == set(manifests) and not differing:
        return False
    for split in PUBLISH_ORDER:
        if split in manifests:
            _publish_split(url, split, found[split], manifests[split])
    return True


def _publish_split(url: str, split: str, found: FoundShards, manifest: Manifest) -> None:
    try:
        if found.is_elsewhere:
            _link(found, filesystem.join(url, split))
        write_manifest(url, split, manifest)
    except DataError:
        raise
    except Exception as error:  # every store raises its own kinds
        raise DataError(
            f"cannot write {url_of(url, split)}: {type(error).__name__}: {error}. The shards were "
            "left as they are: a manifest lies beside its shards. Where you may not write, make "
            "links to local shards in a directory of your own (MINE/train/) and index that, or "
            "copy them: `tahoe shard webdataset`."
        ) from error


def classes_of_other_split(url: str, found: Mapping[str, FoundShards]) -> tuple[str, ...] | None:
    """Return the classes of a split that has a manifest and is not among those found."""
    others = (split for split in PUBLISH_ORDER if split not in found)
    with reaching(url):
        other = next((split for split in others if filesystem.exists(url_of(url, split))), None)
    return None if other is None else read_manifest(url, other).classes


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of classes in a file, one a line.

    Raises:
        DataError: it cannot be read, it names none or one twice, or a line between them is blank.
    """
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the classes in {path}: {error}. Nothing was written: give a text file "
            "(UTF-8) with the name of a class on each line, class 0 first."
        ) from error
    if not all(names):
        blank = f"line {names.index('') + 1} blank" if any(names) else "no class in it"
        raise DataError(
            f"{path} has {blank}, so classes would be shifted: nothing was written. Give each "
            "class a line of its own, class 0 first, and a name to those that have none."
        )
    twice = [name for name, num in Counter(names).items() if num > 1]
    if twice:
        what = f"names {twice[0]!r} twice"
        raise DataError(
            f"{path} {what}, so labels would be ambiguous: nothing was written. Give each class a "
            "line of its own, class 0 first."
        )
    return tuple(names)


def _no_shards(url: str, split: str | None, pattern: str) -> DataError:
    flat = list_shards(url, pattern)
    names = filesystem.list_names(url)
    wanted = f"{split or 'train'}/{pattern}"
    if flat and split is None and url.rstrip("/").rpartition("/")[2] in SPLITS:
        return DataError(
            f"{url} is a split, and manifests are made for the data set that it is part of: "
            "nothing was written. Give the directory above it, with --split for this split alone."
        )
    if flat:
        return DataError(
            f"{pluralize(len(flat), 'shard')} in {url} itself ({flat[0]}, ...), and nothing says "
            "whether they are for training or validation: nothing was written. Say it with "
            "--split train (and --tars 'PATTERN' for some of them), or let Tahoe choose a "
            "validation split: `tahoe shard webdataset URL OUT --val-fraction 0.1`."
        )
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    there = f"it holds {', '.join(names[:_SHOWN])}{more}" if names else "nothing is there"
    return DataError(
        f"no shards at {url}: there is no {wanted}; {there}. Nothing was written: check the URL. "
        "Shards are uncompressed .tar files in train/ and val/ (unpack .tar.gz first)."
    )


def _check_flat(url: str, split: str, names: Sequence[str], pattern: str) -> None:
    """Refuse flat shards before they are read: on a store without links, or some not of a split."""
    if names and filesystem.local_path(url) is None:
        raise DataError(
            f"the shards lie in {url} itself, a data set has them in "
            f"{filesystem.join(url, split)}, and an object store knows no links: nothing was "
            "written. Copy them there, or make a data set of its own: `tahoe shard webdataset`."
        )
    (other,) = (words for name, words in _SPLIT_WORDS.items() if name != split)
    others = [name for name in names if other & {*re.split("[^a-z]+", name.lower())}]
    if 0 < len(others) < len(names) and pattern == "*.tar":
        raise DataError(
            f"{len(others):,} of {len(names):,} shards in {url} are not of {split} by their names "
            f"({others[0]}): nothing was written. Say which are: --tars '*{split}*', or another "
            "pattern."
        )


def _check_names(found: FoundShards) -> None:
    bad = [name for name in found.names if not _SHARD_NAME.fullmatch(name)]
    if bad:
        raise DataError(
            f"{found.url} has a shard called {bad[0]!r}, and names of shards are letters, digits, "
            "'.', '_' and '-' before '.tar': nothing was written. Rename it, or make a data set of "
            "its own: `tahoe shard webdataset`."
        )


def _derive(values: set[int | str]) -> tuple[str, ...]:
    numbers = [value for value in values if isinstance(value, int)]
    if not numbers:
        return sorted_classes(str(value) for value in values)
    if len(numbers) != len(values):
        name = next(value for value in values if isinstance(value, str))
        raise DataError(
            f"some labels are numbers ({numbers[0]}) and some are names ({name!r}), so classes "
            "cannot be numbered: nothing was written. List the classes with --classes FILE."
        )
    if max(numbers) >= _MAX_CLASSES:
        raise DataError(
            f"the labels go up to {max(numbers)}: that many classes cannot be meant, so nothing "
            "was written. Choose the field that holds the class with --label."
        )
    return tuple(str(number) for number in range(max(numbers) + 1))


def _unknown_classes(split: str, unknown: Sequence[int | str], num_classes: int) -> str:
    names = ", ".join(repr(value) for value in unknown[:_SHOWN])
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    return (
        f"{split} has labels that are none of the {num_classes:,} classes: {names}{more}. No model "
        "can learn them, so nothing was written. List all classes with --classes FILE, index both "
        "splits together, or mend the shards."
    )


def _count(scans: Sequence[Scan], classes: Sequence[str]) -> Counter[str]:
    """Return the samples of each class, with those that have none."""
    counts = Counter(dict.fromkeys(classes, 0))
    for scan in scans:
        numbers = np.bincount(scan.codes, minlength=len(scan.values)).tolist()
        for value, number in zip(scan.values, numbers, strict=True):
            counts[classes[value] if isinstance(value, int) else value] += number
    return counts


def _agree(one: Manifest, other: Manifest) -> bool:
    """Whether two manifests say the same of the data; how it was made may differ."""
    return one.fingerprint == other.fingerprint


def _other_manifest(
    url: str, there: Mapping[str, Manifest], new: Mapping[str, Manifest], split: str
) -> str:
    sides = (
        f"{pluralize(len(m.shards), 'shard')}, {pluralize(m.num_samples, 'sample')}, "
        f"{pluralize(len(m.classes), 'class')} "
        f"({', '.join(m.classes[:3])}, ...), labels {m.labels}"
        for m in (there[split], new[split])
    )
    old, found = sides
    return (
        f"{url_of(url, split)} says something else than the shards. There: {old}. Found: {found}. "
        "It was left as it is. If the shards have changed on purpose, replace it with --force."
    )


def _link(found: FoundShards, directory: str) -> None:
    """Make relative links in a directory to shards of another one."""
    path, other = filesystem.local_path(directory), filesystem.local_path(found.url)
    assert path is not None  # find_shards has seen to it
    assert other is not None
    path.mkdir(exist_ok=True)
    for name in found.names:
        (path / name).symlink_to(os.path.relpath(other / name, path))
