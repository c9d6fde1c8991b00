"""Files that the processes of a node share: one creates them, all read them, and they are kept."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

from data_sharding.errors import DataError
from data_sharding.io import filesystem
from data_sharding.io.atomic_file import write_atomic
from data_sharding.io.file_lock import exclusive_lock


def make_private(directory: Path) -> None:
    """Create a directory for this user's files, or check the owner of an existing one."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = directory.stat().st_uid
    if owner not in (os.getuid(), 0):
        raise DataError(
            f"{directory} belongs to the user {owner}: its files are not trusted and not read",
            value=directory,
            hint="Choose a directory of your own (`cache.dir`, or TMPDIR).",
        )


def user_directory(name: str) -> Path:
    """Return this user's directory of that name among the temporary files of the node."""
    return Path(gettempdir(), f"tahoe-{os.getuid()}", name)


def node_file(
    path: Path, lock: str, is_valid: Callable[[Path], bool], read: Callable[[], bytes]
) -> None:
    """Create a file below `user_directory`, unless a process of this node has done so.

    Args:
        lock: the name of the lock file beside it, held while `read` runs.
        is_valid: a check of an existing file, which a crash may have cut short.
        read: the source of its content.
    """
    for directory in (path.parent.parent, path.parent):
        make_private(directory)
    # First without the lock, so that the ranks of a node check a large file side by side.
    if path.exists() and is_valid(path):
        return
    with exclusive_lock(path.with_name(lock)):
        if not (path.exists() and is_valid(path)):
            write_atomic(path, read())


def node_copy(url: str, name: str, is_valid: Callable[[Path], bool]) -> Path:
    """Return the path of a local file, or of this user's copy of a remote one.

    Args:
        name: the name of the copy, another one for each content.
        is_valid: a check of an existing copy, which a crash may have cut short.
    """
    path = filesystem.local_path(url)
    if path is None:
        path = user_directory("tables") / name
        node_file(path, f"{name}.lock", is_valid, lambda: filesystem.read_bytes(url))
    return path
