"""Find the shards that patterns name: single tars, directories, braces as webdataset's, globs."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain

from braceexpand import braceexpand

from data_sharding.errors import DataError
from data_sharding.format.location import Location, is_tar
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
        if _GLOB.search(directory):
            fs, path = filesystem.store_of(pattern)
            urls = [
                str(fs.unstrip_protocol(match))
                for match in sorted(fs.glob(path.replace("[", "[[]")))
            ]
            urls = [str(filesystem.local_path(url) or url) for url in urls]
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
