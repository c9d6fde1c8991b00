"""A directory on a file system without locks, as far as this process can tell.

None can be mounted where tests run, so `fcntl.flock` answers as the kernel does there.
"""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

import pytest


def without_locks(directory: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Refuse locks below a directory with an error number of the kernel's."""
    flock = fcntl.flock

    def refusing(file: int | IO[str] | IO[bytes], operation: int) -> None:
        fd = file if isinstance(file, int) else file.fileno()
        if Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(directory.resolve()):
            raise OSError(number, os.strerror(number))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", refusing)


NUMBERS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
