"""Find the shards that patterns name: single tars, directories, braces as webdataset's, globs."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain

from braceexpand import braceexpand

from data_sharding.errors import DataError
from data_sharding.format.location import Location, is_tar
from data_sharding.format.manifest import Manifest
from data_sharding.io import filesystem
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.tools.duplicate_shards import refuse_equal_urls
from data_sharding.tools.find_shards import FoundShards, listing, words_of_other_splits
from data_sharding.tools.other_layouts import conversion_hint

_GLOB = re.compile(r"[*?]")


def find_named_shards(
    location: Location, splits: Iterable[str] | None = None
) -> dict[str, FoundShards]:
    """Find the shards of each split that the patterns of a location name.

    Raises:
        DataError: a pattern names no shard, or two name the same one.
    """
    found = {split: _expand(location, split) for split in splits or location.splits}
    refuse_equal_urls(chain.from_iterable(shards.urls for shards in found.values()), "shard")
    return found


def _expand(location: Location, split: str) -> FoundShards:
    base = location.base(split)
    names = list[str]()
    for pattern in location.patterns(split):
        try:
            plain = [*braceexpand(pattern)]
        except ValueError as error:
            raise DataError(
                f"{pattern}: {error}. Nothing was written",
                value=pattern,
                hint="Braces list numbers or words: {0000..1023}, {train,val}.",
            ) from None
        names += [url.removeprefix(f"{base}/") for one in plain for url in expand_glob(one)]
    for name in names:
        if not is_tar(name):
            raise DataError(
                f"{name} is no .tar file: nothing was written",
                value=name,
                hint="Name plain tars, by names that end in .tar.",
            )
    _refuse_other_split(location, split, names)
    return FoundShards(base, tuple(names))


def expand_glob(pattern: str) -> list[str]:
    """Return the sorted URLs that match a glob; a pattern without one stands for itself.

    A file whose own name is the pattern is that file. Hidden files do not match.
    """
    if not _GLOB.search(pattern):
        return [pattern]
    directory, _, last = pattern.rpartition("/")
    with listing(pattern):
        if filesystem.exists(pattern):
            return [pattern]
        if magic := _GLOB.search(directory):
            start = directory[: magic.start()].rpartition("/")[0]
            fs, root = filesystem.store_of(start)
            glob = filesystem.join(root, pattern.removeprefix(f"{start}/"))
            matches = sorted(fs.glob(glob.replace("[", "[[]")))
            # A store returns paths in its own spelling.
            below = (match.removeprefix(root.rstrip("/") + "/") for match in matches)
            urls = [filesystem.join(start, name) for name in below]
        else:
            names = filesystem.list_names(directory)
            urls = [
                filesystem.join(directory, n)
                for n in names
                if fnmatchcase(n, last.replace("[", "[[]"))
            ]
    shards = [url for url in urls if is_tar(url) and not url.rpartition("/")[2].startswith(".")]
    if not shards:
        there = truncated_list(filesystem.list_names(directory)) if directory else ""
        raise DataError(
            f"no shards match {pattern}" + (f"; {directory} holds {there}" if there else ""),
            value=pattern,
            hint=conversion_hint([directory] if directory else [])
            or "Check the pattern. Shards are uncompressed .tar files.",
        )
    return shards


def listing_sha256(names: Iterable[str]) -> str:
    """Return a digest (hex) of the names of shards, in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def refuse_other_listing(location: Location, split: str, manifest: Manifest) -> None:
    """Refuse a manifest of other shards than those that globs and directories name now.

    A shard that was added since would be left out without a word.
    """
    listed = manifest.source.get("listing_sha256")
    is_listed = location.url is None and any(map(_GLOB.search, location.patterns(split)))
    if listed is None or not is_listed:
        return
    names = _expand(location, split).names
    if listed != listing_sha256(names):
        raise DataError(
            f"{', '.join(location.patterns(split))} names {pluralize(len(names), 'shard')} now, "
            f"and its manifest was made of others ({len(manifest.shards):,}): they are not the "
            "same data",
            value=location.patterns(split),
            hint="Write the manifest again with `index` and `force`, or name the shards by braces.",
        )


def _refuse_other_split(location: Location, split: str, names: Sequence[str]) -> None:
    """Refuse shards of which some are of the other split by their names, unless named one by one.

    A directory with both splits side by side would otherwise be trained on as a whole.
    """
    files = [name.rpartition("/")[2] for name in names]
    others = [file for file in files if words_of_other_splits(split) & _words(file)]
    has_directory = any(pattern.endswith("/*.tar") for pattern in location.patterns(split))
    if has_directory and 0 < len(others) < len(files):
        raise DataError(
            f"{len(others):,} of {pluralize(len(files), 'shard')} for {split} are not of {split} "
            f"by their names ({others[0]}): nothing was written",
            value=others,
            hint=f"Name those of {split} alone, such as '*{split}*.tar'.",
        )


def _words(name: str) -> set[str]:
    return {*re.split("[^a-z]+", name.lower())}
