"""Images below a directory: every file is listed, or counted as skipped, by kind.

A directory that is skipped counts once, with all that is in it. Links to files are followed.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from data_sharding.format.image_formats import HEIF_EXTENSIONS, IMAGE_EXTENSIONS
from data_sharding.image.heif import can_read_heif
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.clutter import is_clutter

HIDDEN, CLUTTER = "hidden", "left by other programs"
DEAD_LINK, LINKED_DIRECTORY, LOOP = "dead link", "linked directory", "link to a parent directory"
SPECIAL = "neither file nor directory"

Inode = tuple[int, int]  # identity of a file or directory under any name


class ImageFile(NamedTuple):
    """A listed image; `is_linked` if its path goes through a link."""

    path: str
    stat: os.stat_result
    is_linked: bool


@dataclass(frozen=True)
class Walk:
    """A walk through directories that counts what it skips.

    Args:
        root: base of the names of skipped files.
        follow_links: whether linked directories are opened.
    """

    root: Path
    follow_links: bool
    skipped: QualityFindings = field(default_factory=QualityFindings)

    def images(self, directory: Path) -> Iterator[ImageFile]:
        """Yield the images at any depth below a directory, sorted at every level."""
        real = self.root.resolve() / directory.relative_to(self.root)
        yield from self._images(directory, _ancestors(directory), directory.resolve() != real)

    def directories(self, directory: Path, image_kind: str) -> list[Path]:
        """Return the directories in one, sorted and with linked ones; skip its files.

        Args:
            image_kind: kind under which images beside the directories are counted.
        """
        directories, ancestors = [], _ancestors(directory)
        for entry in _entries(directory):
            if kind := _skip_kind(entry, ancestors, follow_links=True):
                self.skip(kind, entry.path)
            elif entry.is_dir():
                directories.append(Path(entry.path))
            else:
                self.skip(image_kind if _is_image(entry) else _extension(entry), entry.path)
        return directories

    def skip(self, kind: str, path: str | Path) -> None:
        """Count a file or directory as skipped."""
        name = os.path.relpath(path, self.root)
        self.skipped.add(kind, os.fsencode(name).decode("utf-8", "backslashreplace"))

    def _images(
        self, directory: str | Path, ancestors: Sequence[Inode], is_linked: bool
    ) -> Iterator[ImageFile]:
        for entry in _entries(directory):
            if kind := _skip_kind(entry, ancestors, follow_links=self.follow_links):
                self.skip(kind, entry.path)
            elif entry.is_dir():
                inside = (*ancestors, _inode(entry.stat()))
                yield from self._images(entry.path, inside, is_linked or entry.is_symlink())
            elif _is_image(entry):
                yield ImageFile(entry.path, entry.stat(), is_linked or entry.is_symlink())
            else:
                self.skip(_extension(entry), entry.path)


def children(directory: Path) -> Iterator[tuple[str, bool]]:
    """Yield the directories and images in a directory: name, and True for a directory."""
    ancestors = _ancestors(directory)
    with os.scandir(directory) as entries:
        for entry in entries:
            is_used = _skip_kind(entry, ancestors, follow_links=True) is None
            if is_used and (entry.is_dir() or _is_image(entry)):
                yield entry.name, entry.is_dir()


def _skip_kind(
    entry: "os.DirEntry[str]", ancestors: Sequence[Inode], *, follow_links: bool
) -> str | None:
    """Return the kind of an entry that is skipped whatever its extension, or None."""
    if entry.name.startswith("."):
        return HIDDEN
    if is_clutter(f"{entry.name}/_"):
        return CLUTTER
    if entry.is_symlink():
        return _skip_kind_of_link(entry, ancestors, follow_links=follow_links)
    return None if entry.is_dir() or entry.is_file() else SPECIAL


def _skip_kind_of_link(
    entry: "os.DirEntry[str]", ancestors: Sequence[Inode], *, follow_links: bool
) -> str | None:
    try:
        target = entry.stat()
    except PermissionError:
        raise
    except OSError:
        return DEAD_LINK  # to nothing, or in a circle
    if stat.S_ISDIR(target.st_mode):
        if _inode(target) in ancestors:
            return LOOP
        return None if follow_links else LINKED_DIRECTORY
    return None if stat.S_ISREG(target.st_mode) else SPECIAL


def _entries(directory: str | Path) -> "list[os.DirEntry[str]]":
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _ancestors(directory: Path) -> tuple[Inode, ...]:
    """Return the inodes of a directory and all above it."""
    real = directory.resolve()
    return tuple(_inode(path.stat()) for path in (real, *real.parents))


def _inode(status: os.stat_result) -> Inode:
    return status.st_dev, status.st_ino


def _is_image(entry: "os.DirEntry[str]") -> bool:
    return Path(entry.name).suffix[1:].lower() in _extensions()


@cache
def _extensions() -> frozenset[str]:
    return IMAGE_EXTENSIONS.union(HEIF_EXTENSIONS if can_read_heif() else ())


def _extension(entry: "os.DirEntry[str]") -> str:
    return Path(entry.name).suffix.lower() or "no extension"
