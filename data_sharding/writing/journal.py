"""Progress of a data set that is being written, so that a killed run can continue.

While a set is unfinished, `URL/in_progress.json` holds its fingerprint and marks the shards there
as ours. `URL/in_progress/NAME.json` is written when a part is complete and on disk, with its
results: parts without such a record are written again. On local disks a lock keeps other runs out:
the processes of a run share it, and it is free when the last of them has ended. So do the jobs, on
any nodes, that write disjoint shards of one set: none of them changes the mark. Object stores have
no locks: two runs that write to one URL there at the same time are not kept apart.
"""

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing import reduction
from typing import Any

from data_sharding.errors import DataError
from data_sharding.format.location import is_fold
from data_sharding.format.manifest import SPLITS, url_of
from data_sharding.io import filesystem
from data_sharding.io.file_lock import NoLocksError, file_lock

REPORT = "quality_report.json"
_MARK = "in_progress.json"
_RECORDS = "in_progress"
_LOCK = "in_progress.lock"
_TEMPORARY = re.compile(  # of filesystem.write_bytes
    r"\A\.(in_progress|quality_report|manifest)\.json\.[0-9a-f]{32}\.tmp\Z"
    r"|\A\.shards\.safetensors\.[0-9a-f]{32}\.tmp\Z"
)
_LOCK_TIMEOUT_S = 5  # the processes of a killed run need a moment to end


class Lock:
    """A locked file; it can be pickled to a process that is being started."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherit, (reduction.DupFd(self.file),)


def _inherit(duplicate: Any) -> Lock:
    return Lock(duplicate.detach())


class Journal:
    """The records of an unfinished data set.

    Args:
        facts: fingerprint of the set; records of any other are ignored.
        lock: kept locked by every process that has the journal.
    """

    def __init__(self, url: str, facts: Mapping[str, Any], lock: Lock | None) -> None:
        self._url, self._lock = url, lock
        self._facts_sha256 = hashlib.sha256(_dump(facts)).hexdigest()

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        """Record that a part is complete, after all of its files are on disk."""
        record = {"facts_sha256": self._facts_sha256, **values}
        filesystem.write_bytes(filesystem.join(self._url, _RECORDS, f"{name}.json"), _dump(record))

    def read(self, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
        """Return the undamaged records by name: all, or those of some names that exist."""
        found = record_names(self._url) if names is None else sorted(names)
        fs, directory = filesystem.store_of(filesystem.join(self._url, _RECORDS))
        paths = [f"{directory}/{name}.json" for name in found]
        contents = fs.cat_ranges(paths, None, None)  # whole files; `cat` takes names for patterns
        records = {}
        for name, data in zip(found, contents, strict=True):
            record = _parse(data) if isinstance(data, bytes) else {}
            if record.pop("facts_sha256", None) == self._facts_sha256:
                records[name] = record
        return records


def record_names(url: str) -> list[str]:
    """Return the names of the records of the unfinished set at a URL."""
    names = filesystem.list_names(filesystem.join(url, _RECORDS))
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def is_in_progress(url: str) -> bool:
    """Check whether a URL is marked as being written."""
    return filesystem.exists(filesystem.join(url, _MARK))


def open_journal(url: str, facts: Mapping[str, Any], lock: Lock | None) -> Journal:
    """Mark a URL as being written, after removing an unfinished set of other facts."""
    mark, data = filesystem.join(url, _MARK), _dump(facts)
    _remove_temporaries(url)
    if not is_in_progress(url) or filesystem.read_bytes(mark) != data:
        if is_in_progress(url):
            _discard(url)
        _refuse_foreign_shards(url)
        filesystem.write_bytes(mark, data)
    return Journal(url, facts, lock)


def join_journal(url: str, facts: Mapping[str, Any], lock: Lock | None) -> Journal:
    """Return the journal of the unfinished set that another process has marked."""
    mark = filesystem.join(url, _MARK)
    if not is_in_progress(url) or filesystem.read_bytes(mark) != _dump(facts):
        raise DataError(
            f"{url} is not being written as this part of it expects; the part was not written",
            value=url,
            hint="Another command has replaced it. Run the one whose set you want again.",
        )
    return Journal(url, facts, lock)


def remove(url: str) -> None:
    """Remove the records and then the mark of a published data set."""
    filesystem.remove_directory(filesystem.join(url, _RECORDS))
    filesystem.remove(filesystem.join(url, _LOCK))
    filesystem.remove(filesystem.join(url, _MARK))


def file_sizes(url: str, split: str) -> dict[str, int]:
    """Return the sizes in bytes of the files of a split, by name."""
    fs, directory = filesystem.store_of(filesystem.join(url, split))
    fs.invalidate_cache(directory)
    try:
        entries = fs.ls(directory, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}


@contextmanager
def locked(url: str, *, shared: bool = False) -> Iterator[Lock | None]:
    """Hold the lock of a data set; yield None where locks are not supported.

    Args:
        shared: whether others may hold it in the same way, who write other shards.
    """
    directory = filesystem.local_path(url)
    if directory is None:
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    path, deadline_s = directory / _LOCK, time.monotonic() + _LOCK_TIMEOUT_S
    with ExitStack() as stack:
        try:
            while not (file := stack.enter_context(file_lock(path, wait=False, shared=shared))):
                if time.monotonic() > deadline_s:
                    raise DataError(
                        f"another process is writing to {url}; nothing was done",
                        value=url,
                        hint="Wait until it has finished, or stop it; the same command then "
                        "continues.",
                    )
                time.sleep(0.05)
        except NoLocksError:
            file = None
        try:
            yield Lock(file.fileno()) if file else None
        finally:
            # While it is locked: nobody else may hold a removed file, unless the set is finished.
            if not shared or not is_in_progress(url):
                path.unlink(missing_ok=True)


def _remove_temporaries(url: str) -> None:
    """Remove partial files of killed writes; object stores have none."""
    root = filesystem.local_path(url)
    if root is not None:
        for directory in (root, *(root / split for split in _splits(url))):
            for path in directory.glob(".*.tmp"):
                if _TEMPORARY.match(path.name):
                    path.unlink()


def _splits(url: str) -> list[str]:
    """Return train, val, and the folds at a URL; of an unfinished set the last published first."""
    return [*SPLITS, *filter(is_fold, filesystem.list_names(url))]


def _refuse_foreign_shards(url: str) -> None:
    for split in _splits(url):
        directory = filesystem.join(url, split)
        tars = [name for name in filesystem.list_names(directory) if name.endswith(".tar")]
        if tars:
            raise DataError(
                f"{directory} has shards without a manifest ({tars[0]}, {len(tars)} in all); they "
                "were left as they are",
                value=directory,
                hint="Write to another URL, or remove them first.",
            )


def _discard(url: str) -> None:
    """Remove an unfinished set: the manifests before the records, and those before the shards."""
    for split in _splits(url):
        filesystem.remove(url_of(url, split))
    filesystem.remove(filesystem.join(url, REPORT))
    filesystem.remove_directory(filesystem.join(url, _RECORDS))
    for split in _splits(url):
        for name in filesystem.list_names(filesystem.join(url, split)):
            if name.startswith("shard-") and name.endswith(".tar"):
                filesystem.remove(filesystem.join(url, split, name))


def _dump(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, ensure_ascii=False).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
