"""Find the shards of a data set: `URL/train/*.tar` and `URL/val/*.tar`.

On a local disk the directory of a split may have another usual name (`valid/`), and the shards of
one split may be in URL itself. `index` then links to them from `train/` or `val/`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from data_sharding.errors import DataError
from data_sharding.format.location import is_fold, shard_url
from data_sharding.format.manifest import PUBLISH_ORDER, SPLITS
from data_sharding.io import filesystem
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.tools.duplicate_shards import canonical_url
from data_sharding.tools.other_layouts import conversion_hint
from data_sharding.tools.remarks import describe_unused, warn

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation")
TEST = ("test", "testing")

_DIRECTORIES = {"train": TRAIN, "val": VAL + TEST}  # earlier names win
_WORDS = {"train": {*TRAIN}, "val": {*VAL, *TEST, "dev", "eval"}}  # in names of shards


@dataclass(frozen=True)
class FoundShards:
    """The shards of a split, and the URL that their names are relative to.

    It may be another directory than the split's own, or empty: see `Location.base`.
    """

    url: str
    names: tuple[str, ...]

    @property
    def urls(self) -> list[str]:
        return [shard_url(self.url, name) for name in self.names]


def find_shards(url: str, split: str | None, pattern: str = "*.tar") -> dict[str, FoundShards]:
    """Find the shards of each split at a URL.

    Args:
        split: the only split to find, whose shards may be in URL itself.
        pattern: shell pattern that the shards' names match.

    Raises:
        DataError: there are none, or their names are not usable; it says what is there.
    """
    with listing(url):
        is_local = filesystem.local_path(url) is not None
    directories = split_directories(url) if is_local else {name: name for name in SPLITS}
    by_split = {}
    for name in PUBLISH_ORDER if split is None else (split,):
        directory = filesystem.join(url, directories[name])
        if names := list_shards(directory, pattern):
            by_split[name] = FoundShards(directory, names)
    if by_split:
        urls = [shard for shards in by_split.values() for shard in shards.urls]
        warn_unused_tars(url, directories.values(), urls)
    else:
        flat = list_shards(url, pattern)
        if split is None or not flat:
            raise _no_shards(url, split, pattern, flat)
        _check_flat(url, split, flat, pattern)
        by_split = {split: FoundShards(url, flat)}
    return by_split


def list_shards(directory: str, pattern: str = "*.tar") -> tuple[str, ...]:
    """Return the sorted names of a directory's tars that match a pattern, without hidden files."""
    with listing(directory):
        names = filesystem.list_names(directory)
    tars = [name for name in names if name.endswith(".tar") and not name.startswith(".")]
    if tars:
        warn(directory, [describe_unused(names, tars)])
    return tuple(name for name in tars if fnmatchcase(name, pattern))


def split_directories(url: str) -> dict[str, str]:
    """Return the directory of each split: `train` or `val` if it exists, else a synonym.

    A synonym is used if it holds shards, and logged.
    """
    with listing(url):
        names = filesystem.list_names(url)
    directories = {split: split for split in SPLITS}
    for split in {*SPLITS} - {*names}:
        synonyms = (n for word in _DIRECTORIES[split] for n in names if n.casefold() == word)
        for name in synonyms:
            if list_shards(filesystem.join(url, name)):
                directories[split] = name
                warn(url, [f"the shards of {split} are those in {name}/"])
                break
    return directories


def warn_unused_tars(url: str, directories: Iterable[str], used: Iterable[str]) -> None:
    """Log which tars are beside or below the directories of the splits, and not used.

    Args:
        directories: names of the splits' directories.
        used: URLs of the shards that are used; links to them count as used.
    """
    words = {*TRAIN, *VAL, *TEST}
    with listing(url):
        siblings = {n for n in filesystem.list_names(url) if n.casefold() in words}
        below = [
            f"{name}/{sub}"
            for name in directories
            for sub in filesystem.list_directories(filesystem.join(url, name))
            if not sub.startswith(".")
        ]
    used_urls = {canonical_url(shard) for shard in used}
    unused = []
    for name in ("", *sorted(siblings - {*directories}), *below):
        directory = filesystem.join(url, name) if name else url
        tars = [
            tar
            for tar in list_shards(directory)
            if canonical_url(filesystem.join(directory, tar)) not in used_urls
        ]
        if tars:
            unused.append(f"{len(tars):,} in {name or '.'}/ (first {tars[0]})")
    if unused:
        advice = "Move or link them into train/ or val/ if they belong to the set."
        warn(url, [f"tars that are not used: {', '.join(unused)}. {advice}"])


def words_of_other_splits(split: str) -> set[str]:
    """Return the words that tell, in the name of a shard, that it is not of a split."""
    (words,) = (words for name, words in _WORDS.items() if name != split)
    return words


@contextmanager
def listing(url: str) -> Iterator[None]:
    """Raise a DataError about a URL that cannot be listed."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # also of unknown protocols, missing packages, bad options
        raise DataError(
            f"cannot list {url}: {type(error).__name__}: {error}. Nothing was written",
            value=url,
            hint="Check the URL, the credentials and the network.",
        ) from error


def _no_shards(url: str, split: str | None, pattern: str, flat: Sequence[str]) -> DataError:
    if flat and url.rstrip("/").rpartition("/")[2] in SPLITS:
        return DataError(
            f"{url} is a split, and manifests are made for the data set that contains it: nothing "
            "was written",
            value=url,
            hint="Give the directory above it, and `split` for this split alone.",
        )
    if flat:
        return DataError(
            f"{pluralize(len(flat), 'shard')} in {url} itself ({flat[0]}, ...) may be for training "
            "or for validation: nothing was written",
            value=url,
            hint=f"{_name_splits(url, flat)}, or let `webdataset` choose a validation split with "
            "`val_fraction`.",
        )
    names = filesystem.list_names(url)
    if folds := [name for name in names if is_fold(name)]:
        return DataError(
            f"{url} has folds ({truncated_list(folds)}), which were written with their manifests: "
            "nothing was written",
            value=url,
            hint="Choose the one to validate on with `fold`.",
        )
    content = f"it holds {truncated_list(names)}" if names else "nothing is there"
    return DataError(
        f"no shards at {url}: there is no {split or 'train'}/{pattern}; {content}. Nothing was "
        "written",
        value=url,
        hint=conversion_hint([filesystem.join(url, split or "train"), url], split or "train")
        or "Check the URL. Shards are uncompressed .tar files in train/ and val/.",
    )


def _name_splits(url: str, names: Sequence[str]) -> str:
    """Suggest how to name the shards of each split of those side by side in a directory."""
    in_val = [name for name in names if _WORDS["val"] & {*re.split("[^a-z]+", name.lower())}]
    others = [name for name in names if name not in {*in_val}]
    if not (in_val and others):
        return "Name those of each split where they are, with `train` and `val` instead of `url`"
    starts = (os.path.commonprefix(part) for part in (others, in_val))  # noqa: RUF071  of texts
    train, val = (
        filesystem.join(url, f"{start.removesuffix('.tar').rstrip('0123456789')}*.tar")
        for start in starts
    )
    return f"Name those of each split: `tahoe shard index 'data.train={train}' 'data.val={val}'`"


def _check_flat(url: str, split: str, names: Sequence[str], pattern: str) -> None:
    """Refuse shards in URL itself on a store without links, or if some are of the other split."""
    if filesystem.local_path(url) is None:
        raise DataError(
            f"the shards are in {url} itself, and without links in {filesystem.join(url, split)} "
            "the URL alone does not say which are of which split: nothing was written",
            value=url,
            hint="Name the shards of each split where they are, with `train` and `val` instead of "
            "`url`.",
        )
    others = [n for n in names if words_of_other_splits(split) & {*re.split("[^a-z]+", n.lower())}]
    if 0 < len(others) < len(names) and pattern == "*.tar":
        raise DataError(
            f"{len(others):,} of {len(names):,} shards in {url} are not of {split} by their names "
            f"({others[0]}): nothing was written",
            value=others,
            hint=f"Choose shards with `tars`, such as '*{split}*'.",
        )
