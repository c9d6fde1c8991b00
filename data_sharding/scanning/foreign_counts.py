"""The numbers of samples of shards that other tools have counted, in files beside the shards.

* timm: `_info.json` or `info.json`: file names and lengths of the shards of each split
  (timm/data/readers/reader_wds.py).
* img2dataset: `00000_stats.json` beside `00000.tar`; a tar holds its successes
  (img2dataset/logger.py).
* wids: an index of shards, usually `shardindex.json` (webdataset, wids/wids_index.py).

They say nothing of labels and classes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from data_sharding.io import filesystem

_INFO_NAMES = ("_info.json", "info.json")
_STATS = "_stats.json"
_MAX_INDEX_FILES = 8  # in a directory that may be full of other JSON
_REQUESTS_AT_ONCE = 32


class ForeignCounts(NamedTuple):
    """Counts of samples.

    source: URL of the file that has them, or of the first.
    num_samples: number of samples of each shard, by its URL.
    """

    source: str
    num_samples: Mapping[str, int]


def find_counts(urls: Sequence[str]) -> ForeignCounts | None:
    """Return counts of shards if there are some of all of them.

    Args:
        urls: the shards.
    """
    directories = dict.fromkeys(_parent(url) for url in urls)
    parents = dict.fromkeys(filter(_is_directory, map(_parent, directories)))
    listings = {directory: _list_json(directory) for directory in {**directories, **parents}}
    for counts in _found(listings, urls):
        if all(url in counts.num_samples for url in urls):
            return counts
    return None


def _found(listings: Mapping[str, Sequence[str]], urls: Sequence[str]) -> Iterator[ForeignCounts]:
    files = {filesystem.join(d, name) for d, names in listings.items() for name in names}
    stats = {url: f"{url.removesuffix('.tar')}{_STATS}" for url in urls}
    if files.issuperset(stats.values()):
        yield _from_stats(stats)
    for directory, names in listings.items():
        others = [name for name in names if name not in _INFO_NAMES and not name.endswith(_STATS)]
        for name in [*_INFO_NAMES, *others[:_MAX_INDEX_FILES]]:
            content = _read(filesystem.join(directory, name)) if name in names else None
            counted = {**_of_timm(content, directory), **_of_wids(content, directory)}
            if counted:
                yield ForeignCounts(filesystem.join(directory, name), counted)


def _is_directory(url: str) -> bool:
    return bool(url) and not url.endswith((":", ":/"))


def _list_json(directory: str) -> Sequence[str]:
    try:
        return [name for name in filesystem.list_names(directory) if name.endswith(".json")]
    except OSError:  # such as a web server without listings
        return _INFO_NAMES


def _from_stats(stats: Mapping[str, str]) -> ForeignCounts:
    """Read img2dataset's file of each shard."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        contents = pool.map(_read, stats.values())
        counted = {
            url: content["successes"]
            for url, content in zip(stats, contents, strict=True)
            if isinstance(content, dict) and _is_count(content.get("successes"))
        }
    return ForeignCounts(next(iter(stats.values())), counted)


def _of_timm(content: Any, directory: str) -> dict[str, int]:
    splits = content.get("splits") if isinstance(content, dict) else None
    counted: dict[str, int] = {}
    for split in splits.values() if isinstance(splits, dict) else ():
        names, lengths = (split.get(key) for key in ("filenames", "shard_lengths"))
        if isinstance(names, list) and isinstance(lengths, list) and len(names) == len(lengths):
            counted |= _counts(zip(names, lengths, strict=True), directory)
    return counted


def _of_wids(content: Any, directory: str) -> dict[str, int]:
    shards = content.get("shardlist") if isinstance(content, dict) else None
    if not isinstance(shards, list):
        return {}
    pairs = [(s.get("url"), s.get("nsamples")) for s in shards if isinstance(s, dict)]
    # They are fetched from where they were counted; copies are beside the index.
    here = [(_name(url), num) for url, num in pairs if isinstance(url, str)]
    return {**_counts(here, directory), **_counts(pairs, directory)}


def _counts(pairs: Iterable[tuple[Any, Any]], directory: str) -> dict[str, int]:
    return {
        name if "://" in name or name.startswith("/") else filesystem.join(directory, name): num
        for name, num in pairs
        if isinstance(name, str) and _is_count(num)
    }


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _read(url: str) -> Any:
    """Read a JSON file; None if that fails, since it is only of use."""
    try:
        return json.loads(filesystem.read_bytes(url))
    except (OSError, ValueError, RecursionError):
        return None


def _parent(url: str) -> str:
    return url.rstrip("/").rpartition("/")[0]


def _name(url: str) -> str:
    return url.rpartition("/")[2]
