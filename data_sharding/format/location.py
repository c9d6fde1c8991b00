"""Where the shards and the manifests of a data set are.

The layout that is written here is a URL with train/ and val/, each with its shards and manifest.
Shards of others are taken where they lie: patterns name those of each split. The manifest of a
pattern is a file of its own, so that several splits, or several choices of samples, can share a
directory. It lies beside the shards if that place can be written, else in a cache of the user.

For cross-validation a URL has fold-0/, fold-1/, ... in place of train/ and val/. With fold n, val
is fold-n, and train is the others, whose shards are called `fold-0/shard-000000.tar`.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from data_sharding.errors import DataError, MissingManifestError
from data_sharding.io import filesystem

log = logging.getLogger(__name__)

_SHARD_NAME = re.compile(
    r"(?:[\w+.\-:]+://|/)?(?:(?!\.\.?/)[^/\0-\x1f\x7f]+/)*[^/\0-\x1f\x7f]+\.tar", re.IGNORECASE
)
_MAGIC = re.compile(r"[{*?]")  # brackets are part of a name
_FOLD = re.compile(r"fold-\d+")
_ONLY_PROTOCOL = re.compile(r"[\w+.\-:]+:/?")


@dataclass(frozen=True)
class Location:
    """The place of a data set: a URL with train/ and val/, or patterns of the shards of each split.

    A pattern is a shard, a directory of shards, or either with braces (`{000..099}`) or a glob.

    Args:
        manifest: directory of the manifests, instead of those where they are looked for.
        rules: text that identifies a choice of samples other than the manifest's own.
        fold: number of the fold that is val, at a URL that has folds.
    """

    url: str | None = None
    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    manifest: str | None = None
    rules: str = ""
    fold: int | None = None

    def __post_init__(self) -> None:
        if self.fold is not None and (self.url is None or self.manifest or self.rules):
            raise DataError(
                f"`fold` {self.fold} is of a data set that was written in folds, with manifests of "
                "its own, and other shards or a choice of samples are given",
                value=self.fold,
                hint="Give `url` alone with `fold`.",
            )

    @classmethod
    def of(cls, where: "str | Location") -> "Location":
        """Return the location of a data set that may be given by its URL alone."""
        return where if isinstance(where, Location) else cls(where)

    def __str__(self) -> str:
        return self.url or ", ".join(self.train or self.val)

    @property
    def has_named_files(self) -> bool:
        """True if the names of its files tell for which shards they are."""
        return bool(self.url is None or self.manifest or self.rules)

    @property
    def splits(self) -> list[str]:
        """The splits whose shards are named."""
        is_named = {"train": self.url or self.train, "val": self.url or self.val}
        return [split for split in is_named if is_named[split]]

    def patterns(self, split: str) -> tuple[str, ...]:
        """Return the patterns of the shards of a split.

        Raises:
            DataError: the location does not say where they are.
        """
        if self.url is not None:
            if is_tar(self.url):
                raise DataError(
                    f"{self.url} names shards, and a URL alone is the directory of train/ and "
                    "val/: nothing is read",
                    value=self.url,
                    hint="Name the shards of each split with `train` and `val`.",
                )
            return (filesystem.join(self.url, self._directory(split), "*.tar"),)
        given = self.train if split == "train" else self.val
        if not given:
            raise DataError(
                f"nothing says where the shards of {split} are",
                value=str(self),
                hint=f"Give `{split}`: a pattern, or a list of patterns.",
            )
        return tuple(as_pattern(pattern) for pattern in given)

    def _directory(self, split: str) -> str:
        if self.fold is None:
            return split
        return fold_name(self.fold) if split == "val" else "fold-*"

    def fold_error(self, num_folds: int) -> MissingManifestError:
        """Construct the error of a URL that has not what `fold` says, but so many folds or none."""
        if not num_folds:
            problem = f"no folds at {self}: {fold_name(0)}/ has no manifest"
            hint = "Leave out `fold`, or write the data set in `folds`."
        else:
            lack = "neither train/ nor val/" if self.fold is None else f"no fold {self.fold}"
            problem = f"{self} has {num_folds} folds and {lack}: nothing is read"
            hint = f"Choose the one to validate on with `fold`, from 0 to {num_folds - 1}."
        return MissingManifestError(problem, value=self.fold, hint=hint)

    def base(self, split: str) -> str:
        """Return the URL that the names of shards are relative to.

        It is empty if the patterns have no directory in common; names are whole URLs then.
        """
        return _common([_directory(pattern) for pattern in self.patterns(split)])

    def is_local(self, split: str) -> bool:
        """Check whether all shards of a split are files of this machine."""
        return all(filesystem.local_path(pattern) for pattern in self.patterns(split))

    def shard_url(self, split: str, name: str) -> str:
        """Return the URL of a shard by its name in the manifest."""
        return shard_url(self.base(split), name)

    def files(self, split: str, name: str) -> list[str]:
        """Return the URLs where a file about a split may be, first the one to prefer."""
        base, patterns = self.base(split), self.patterns(split)
        fold = [] if self.fold is None else [fold_name(self.fold)]
        places = [p if "://" in p else str(Path(p).absolute()) for p in patterns]
        elsewhere = _name(name, split, [*places, self.rules, *fold])
        if self.manifest is not None:
            return [filesystem.join(self.manifest, elsewhere)]
        in_cache = str(_user_cache() / elsewhere)
        if not base:
            return [in_cache]
        if self.has_named_files:
            relative = [pattern.removeprefix(base) for pattern in patterns]  # the same in a copy
            name = _name(name, split, [*relative, self.rules])
        elif self.fold is not None and split == "train":
            name = _name(name, split, fold)
        return [filesystem.join(base, name), in_cache]


def fold_name(fold: int) -> str:
    """Return the directory of a fold, which is a split of its own.

    >>> fold_name(3)
    'fold-3'
    """
    return f"fold-{fold}"


def is_fold(name: str) -> bool:
    """Check whether a directory is called as folds are."""
    return _FOLD.fullmatch(name) is not None


LAST_PUBLISHED = ("train", fold_name(0))  # a set is complete when either has its manifest


def publish_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Return the splits or folds of a set in the order of their publication."""
    return tuple(sorted(splits, reverse=True))


def check_shard_name(name: str) -> str:
    """Return a name of a shard, a URL or a path that cannot lead out of a base; else ValueError."""
    if not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is no name of a .tar file")
    return name


def shard_url(base: str, name: str) -> str:
    """Return the URL of a shard by its name in a manifest, relative to a base or a URL itself."""
    if not base:
        return name
    if "://" in name or name.startswith("/"):
        raise DataError(
            f"the shard {name} of the manifest is not below {base}, where its data set is: it is "
            "not read",
            value=name,
            hint="Write the manifest again with `index`.",
        )
    return filesystem.join(base, name)


def find_file(location: Location, split: str, name: str) -> str:
    """Return the URL of a file about a split; the preferred one if there is none.

    A place that may not be read is passed over: a bucket whose names may not be listed refuses
    what does not exist. Any other failure is raised, since another place may have an older file.
    """
    urls = location.files(split, name)
    return next((url for url in urls if _exists(url)), urls[0])


def write_files(
    location: Location,
    split: str,
    write: Callable[[Callable[[str], str]], None],
    *,
    anywhere: bool = False,
) -> None:
    """Write files about a split to the preferred place.

    Args:
        write: writes all of them; it is given a function from the name of a file to its URL.
        anywhere: take the next place if one cannot be written.

    Raises:
        OSError: no place can be written.
    """
    is_web = location.base(split).startswith(("http://", "https://"))  # which takes no files
    *others, last = range(len(location.files(split, "")) if anywhere else 1)
    written = list[str]()

    def choose(place: int, name: str) -> str:
        written.append(location.files(split, name)[place])
        return written[-1]

    for place in others if not is_web else ():
        written.clear()
        try:
            write(partial(choose, place))
            return
        except (OSError, NotImplementedError) as error:
            if any(map(_exists, written)):  # it would be preferred to what is written elsewhere
                raise
            log.info("%s: cannot be written: %s", location.base(split), error)
    write(partial(choose, last))
    if last:
        log.warning(
            "%s: nothing can be written beside the shards, so their manifest is in %s. Nodes and "
            "users with another home directory do not see it there: data.manifest is a directory "
            "of your choice",
            split,
            location.files(split, "")[last].rpartition("/")[0],
        )


def as_pattern(text: str) -> str:
    """Return the pattern of all shards in a directory; any other pattern as it is."""
    return text if _MAGIC.search(text) or is_tar(text) else filesystem.join(text, "*.tar")


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def _directory(pattern: str) -> str:
    """Return the directory that all shards of a pattern are below."""
    magic = _MAGIC.search(pattern)
    return (pattern[: magic.start()] if magic else pattern).rpartition("/")[0]


def _common(directories: Iterable[str]) -> str:
    """Return the nearest directory above some; empty if they are in different stores."""
    steps = zip(*(directory.split("/") for directory in directories), strict=False)
    common = "/".join(names[0] for names in takewhile(lambda names: len({*names}) == 1, steps))
    return "" if _ONLY_PROTOCOL.fullmatch(common) else common


def _name(name: str, split: str, identity: Iterable[str]) -> str:
    """Return the name of a file about a split that tells for which shards it is."""
    digest = hashlib.sha256(json.dumps([*identity]).encode()).hexdigest()[:12]
    stem, dot, extension = name.partition(".")
    return f"{stem}-{split}-{digest}{dot}{extension}"


def _user_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "tahoe", "manifests")


def _exists(url: str) -> bool:
    try:
        return filesystem.exists(url)
    except PermissionError:
        return False
