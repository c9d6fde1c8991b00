"""Files and directories that systems leave beside images: they are nobody's data.

macOS writes `._x` and `.DS_Store`, and `__MACOSX/` into its archives; Windows `Thumbs.db`;
Synology `@eaDir/`; Jupyter `.ipynb_checkpoints/`.
"""

from functools import lru_cache

_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini"))
_DIRECTORIES = frozenset(
    (
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        ".ipynb_checkpoints",
        ".Trashes",
        ".Spotlight-V100",
        ".fseventsd",
    )
)


def is_clutter(name: str) -> bool:
    """Return whether a file is hidden or left by a system, by its path with slashes."""
    directory, _, file = name.rpartition("/")
    if file[:1] == "." or file.lower() in _FILES:
        return True
    return directory != "" and _has_clutter(directory)


@lru_cache(maxsize=256)  # files of a directory come together
def _has_clutter(directory: str) -> bool:
    return not _DIRECTORIES.isdisjoint(directory.split("/"))
