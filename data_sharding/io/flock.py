"""`flock`: the kernel takes it back however its holder ends; not every file system has it."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class NoLocksError(OSError):
    """A file system has no locks; the message says what to do instead."""

    def __str__(self) -> str:
        return str(self.strerror)


def flock(
    file: IO[str] | IO[bytes] | int,
    path: Path,
    *,
    shared: bool = False,
    wait: bool = False,
    instead: str = "another directory",
) -> bool:
    """Lock an open file; return False where somebody else holds it, unless this waits for that.

    Args:
        file: open for writing if it is to be held alone: NFS asks for that.
        path: of the file, as messages name it.
        instead: what to choose where there are no locks.

    Raises:
        NoLocksError: there are none.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise NoLocksError(
            error.errno,
            f"{path.parent} is on a file system without locks ({os.strerror(error.errno)}): "
            "processes would overwrite each other's files there. Have it mounted with locks "
            f"(Lustre: -o flock), or choose {instead}.",
        ) from None
    return True
