"""Remote files as files of this node: copied once for all its processes, and kept."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

from data_sharding.io import filesystem
from data_sharding.io.file_lock import exclusive_lock, make_private


def node_copy(url: str, name: str, is_sound: Callable[[Path], bool]) -> Path:
    """Return the path of a local file, or of this user's copy of a remote one.

    Args:
        name: of the copy: another one for each content.
        is_sound: whether a copy that is there, perhaps cut short by a crash, can be used.

    Raises:
        DataError: somebody else could change the copy.
        FileNotFoundError: there is no such file. Stores raise other kinds for other reasons.
    """
    path = filesystem.local_path(url)
    if path is not None:
        return path
    directory = Path(gettempdir(), f"tahoe-{os.getuid()}", "tables")
    make_private(directory.parent)
    make_private(directory)
    copy = directory / name
    with exclusive_lock(directory / f"{name}.lock"):
        if not (copy.exists() and is_sound(copy)):
            filesystem.write_bytes(str(copy), filesystem.read_bytes(url))
    return copy
