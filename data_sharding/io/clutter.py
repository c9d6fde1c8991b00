"""Files and directories that operating systems leave beside images.

macOS writes `._x` and `.DS_Store`, and `__MACOSX/` into its archives; Windows `Thumbs.db`;
Synology `@eaDir/`; Jupyter `.ipynb_checkpoints/`.
"""

from functools import lru_cache

_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_DIRECTORIES = {
    *("__macosx", ".trashes", ".spotlight-v100", ".fseventsd"),  # macOS
    *("$recycle.bin", "system volume information"),  # Windows
    *("@eadir", "#recycle", "lost+found"),  # Synology, Linux
    *("__pycache__", ".ipynb_checkpoints"),  # Python
}


def is_clutter(path: str) -> bool:
    """Check whether a file, named by its path with slashes, is hidden or left by a system."""
    directory, _, name = path.rpartition("/")
    return name[:1] == "." or name.lower() in _FILES or _has_clutter(directory)


@lru_cache(maxsize=256)  # the files of a directory are listed together
def _has_clutter(directory: str) -> bool:
    return not _DIRECTORIES.isdisjoint(directory.lower().split("/"))
