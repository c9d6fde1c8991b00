"""What is done of a data set that is being written, so that a run that was killed can be taken up.

While a set is unfinished, `URL/unfinished.json` says what it is to become: it marks what lies there
as ours. `URL/unfinished/NAME.json` is written when a part is done and durable, and says what came
of it; parts without such a record are done again. On local disks a lock keeps others out: the
processes of a run share it, and it is free as soon as the last of them is gone. Object stores have
no locks: two runs that write to one URL there at the same time are not kept apart.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from data_sharding.errors import DataError
from data_sharding.format.manifest import SPLITS, url_of
from data_sharding.io import filesystem
from data_sharding.io.file_lock import NoLocksError, flock

REPORT = "report.json"
_MARK = "unfinished.json"
_RECORDS = "unfinished"
_LOCK = "unfinished.lock"
_TEMPORARY = re.compile(  # as files.write_bytes calls it
    r"\A\.(unfinished\.json|report\.json|manifest\.json|shards\.safetensors)\.[0-9a-f]{32}\.tmp\Z"
)
_LOCK_TIMEOUT_S = 5  # for the processes of a run that was killed to be gone


class Lock:
    """An open file that is locked; it can be pickled to a process that is being started."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherit, (reduction.DupFd(self.file),)


def _inherit(duplicate: Any) -> Lock:
    return Lock(duplicate.detach())


class Journal:
    """The records of an unfinished data set.

    Args:
        facts: what it is to become; the records of any other are passed over.
        lock: held by whoever has the journal.
    """

    def __init__(self, url: str, facts: Mapping[str, Any], lock: Lock | None) -> None:
        self._url, self._lock = filesystem.join(url, _RECORDS), lock
        self._facts_sha256 = hashlib.sha256(_dump(facts)).hexdigest()

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        """Note that a part is done: all that it wrote is durable."""
        record = {"facts_sha256": self._facts_sha256, **values}
        filesystem.write_bytes(filesystem.join(self._url, f"{name}.json"), _dump(record))

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the records there are, by name; damaged ones do not count."""
        names = [name for name in filesystem.list_names(self._url) if name.endswith(".json")]
        fs, directory = filesystem.store_of(self._url)
        paths = [f"{directory}/{name}" for name in names]
        found = fs.cat_ranges(paths, None, None)  # whole files; `cat` takes names for patterns
        records = {}
        for name, data in zip(names, found, strict=True):
            record = _parse(data) if isinstance(data, bytes) else {}
            if record.pop("facts_sha256", None) == self._facts_sha256:
                records[name.removesuffix(".json")] = record
        return records


def is_in_progress(url: str) -> bool:
    """Return whether traces of writing lie at a URL."""
    return filesystem.exists(filesystem.join(url, _MARK))


def open_journal(url: str, facts: Mapping[str, Any], lock: Lock | None) -> Journal:
    """Mark a URL as being written, and clear what was to become another data set.

    Raises:
        DataError: it holds shards that are not ours.
    """
    mark, data = filesystem.join(url, _MARK), _dump(facts)
    _remove_temporaries(url)
    is_marked = filesystem.exists(mark)
    if is_marked and filesystem.read_bytes(mark) == data:
        return Journal(url, facts, lock)
    if is_marked:
        _discard(url)
    _refuse_others(url)
    filesystem.write_bytes(mark, data)
    return Journal(url, facts, lock)


def remove(url: str) -> None:
    """Remove the records and the mark, in this order, of a data set that is published."""
    filesystem.remove_directory(filesystem.join(url, _RECORDS))
    filesystem.remove(filesystem.join(url, _LOCK))
    filesystem.remove(filesystem.join(url, _MARK))


def file_sizes(url: str, split: str) -> dict[str, int]:
    """Return the sizes in bytes of the files of a split, by name."""
    fs, directory = filesystem.store_of(filesystem.join(url, split))
    fs.invalidate_cache(directory)
    try:
        listed = fs.ls(directory, detail=True)
    except FileNotFoundError:
        return {}
    return {file["name"].rpartition("/")[2]: file["size"] for file in listed}


@contextmanager
def locked(url: str) -> Iterator[Lock | None]:
    """Hold the lock of a data set; None where there can be none.

    Raises:
        DataError: somebody else is writing there.
    """
    directory = filesystem.local_path(url)
    if directory is None:
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _LOCK
    file = _acquire(path, url)
    try:
        yield Lock(file)
    finally:
        path.unlink(missing_ok=True)  # before it is let go, so that nobody holds a file that is not
        os.close(file)


def _acquire(path: Path, url: str) -> int:
    deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if _try_lock(file, path) and _is_at(file, path):
            return file
        os.close(file)
        if time.monotonic() > deadline_s:
            raise DataError(
                f"another process is writing to {url}: nothing was done. Wait until it has "
                "finished, or stop it; the same command then goes on where it stopped."
            )
        time.sleep(0.05)


def _try_lock(file: int, path: Path) -> bool:
    try:
        return flock(file, path)
    except NoLocksError:
        return True  # as an object store has none


def _is_at(file: int, path: Path) -> bool:
    """Return whether a file is still what lies at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _remove_temporaries(url: str) -> None:
    """Remove what is left of files whose publishing was cut short; object stores have none."""
    root = filesystem.local_path(url)
    if root is not None:
        for directory in (root, *(root / split for split in SPLITS)):
            for path in directory.glob(".*.tmp"):
                if _TEMPORARY.match(path.name):
                    path.unlink()


def _refuse_others(url: str) -> None:
    for split in SPLITS:
        names = filesystem.list_names(filesystem.join(url, split))
        foreign = [name for name in names if name.endswith(".tar")]
        if foreign:
            raise DataError(
                f"{filesystem.join(url, split)} holds shards without a manifest ({foreign[0]}, "
                f"{len(foreign)} in all). They were left as they are. Write to another URL, or "
                "remove them first."
            )


def _discard(url: str) -> None:
    """Remove an unfinished set: the manifests before the records, and those before the shards."""
    for split in SPLITS:
        filesystem.remove(url_of(url, split))
    filesystem.remove(filesystem.join(url, REPORT))
    filesystem.remove_directory(filesystem.join(url, _RECORDS))
    for split in SPLITS:
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
