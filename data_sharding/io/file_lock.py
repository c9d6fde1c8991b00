"""Locks that are released however their holder ends: `flock` on files.

The kernel wakes whoever waits, so there is nothing to poll and nothing to expire. A locked file may
have been removed or replaced while a process waited for it: every function here checks again once
it has the lock. Not every file system supports `flock`.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class NoLocksError(OSError):
    """A file system does not support locks; the fields are those of `UserError`."""

    def __init__(self, number: int, directory: Path, alternative: str) -> None:
        super().__init__(
            number,
            f"{directory} is on a file system without locks ({os.strerror(number)}): processes "
            "would overwrite each other's files there",
        )
        self.problem, self.value = self.strerror, directory
        self.hint = f"Mount it with locks (Lustre: -o flock), or choose {alternative}."

    def __str__(self) -> str:
        return f"{self.problem}. {self.hint}"


def flock(
    file: IO[str] | IO[bytes] | int,
    path: Path,
    *,
    shared: bool = False,
    wait: bool = False,
    alternative: str = "another directory",
) -> bool:
    """Lock an open file; without `wait`, return False if another process holds it.

    Args:
        file: an open file; NFS grants exclusive locks only to files open for writing.
        path: the path of the file, for messages.
        alternative: the choice that an error suggests where locks are not supported.

    Raises:
        NoLocksError: the file system does not support locks.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, operation if wait else operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        raise NoLocksError(error.errno, path.parent, alternative) from None
    return True


def exclusive_lock(path: Path, *, wait: bool = True) -> AbstractContextManager[IO[bytes] | None]:
    """Create a file if needed and hold it exclusively; without `wait`, yield None if it is held."""
    return file_lock(path, wait=wait)


@contextmanager
def file_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[IO[bytes] | None]:
    """Create a file if needed and lock it; without `wait`, yield None if another process bars it.

    Args:
        shared: whether others may hold it in the same way.
    """
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            if not flock(file, path, shared=shared, wait=wait):
                yield None
                return
            if is_same_file(file, path):
                yield file
                return


@contextmanager
def shared_lock(path: Path) -> Iterator[IO[bytes] | None]:
    """Keep a file from being removed by `remove_if_unlocked`; yield None if it does not exist."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        yield None
        return
    with file:
        flock(file, path, shared=True, wait=True)
        yield file if os.fstat(file.fileno()).st_nlink else None


def remove_if_unlocked(path: Path) -> bool:
    """Remove a file that no process holds; return whether it no longer exists."""
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
    """Check whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
