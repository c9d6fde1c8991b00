"""Files that the processes of a node share: a private directory, and locks that die with a holder.

A lock is `flock` on a file. The kernel releases it however its holder ends, and wakes who waits, so
there is nothing to poll and nothing to expire. A locked file may have been removed or replaced
while a process waited for it; every function here looks again after it has the lock.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_sharding.errors import DataError
from data_sharding.io.flock import flock


def make_private(directory: Path) -> None:
    """Make a directory for this user's files, or check one that is there.

    Raises:
        DataError: it belongs to somebody else, who could put anything there.
        OSError: it cannot be made.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = directory.stat().st_uid
    if owner not in (os.getuid(), 0):
        raise DataError(
            f"{directory} belongs to the user {owner}: what lies there could be anything, so it is "
            "not read. Choose a directory of your own (cluster.cache.dir, or TMPDIR)."
        )


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """Make a file if need be and hold it alone; without `wait`, None where somebody holds it."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            if not flock(file, path, wait=wait):
                yield None
                return
            if is_same_file(file, path):
                yield file
                return


@contextmanager
def shared_lock(path: Path) -> Iterator[IO[bytes] | None]:
    """Keep a file from being removed by `remove_if_unlocked`; None where there is no file."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        yield None
        return
    with file:
        flock(file, path, shared=True, wait=True)
        yield file if os.fstat(file.fileno()).st_nlink else None


def remove_if_unlocked(path: Path) -> bool:
    """Remove a file that nobody has locked or pinned; return whether it is gone."""
    try:
        file = path.open("r+b", buffering=0)
    except FileNotFoundError:
        return True
    with file:
        if not flock(file, path):
            return False
        if is_same_file(file, path):
            path.unlink(missing_ok=True)
        return not path.exists()


def is_same_file(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
