"""The images below a directory: every file is listed, or passed over and counted by kind.

A directory that is passed over counts once, with all that is in it. Links to files are followed.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.clutter import is_clutter

HIDDEN, CLUTTER = "hidden", "left by other programs"
DEAD_LINK, LINKED_DIRECTORY, LOOP = "dead link", "linked directory", "link to what it lies in"
SPECIAL = "neither file nor directory"

Inode = tuple[int, int]  # tells a file or directory, whatever it is called


class ImageFile(NamedTuple):
    """A file to be listed; `is_linked` if a link leads to it."""

    path: str
    stat: os.stat_result
    is_linked: bool


@dataclass(frozen=True)
class Walk:
    """Walks directories, and counts what it passes over.

    Args:
        home: names are told from here.
        follows_links: open linked directories, too.
    """

    home: Path
    follows_links: bool
    passed_over: QualityFindings = field(default_factory=QualityFindings)

    def images(self, directory: Path) -> Iterator[ImageFile]:
        """Yield the images at any depth below a directory, sorted at every level."""
        real = self.home.resolve() / directory.relative_to(self.home)
        yield from self._images(directory, _inodes_around(directory), directory.resolve() != real)

    def directories(self, directory: Path, around_them: str) -> list[Path]:
        """Return the directories in one, sorted, linked ones too; files in it are passed over.

        Args:
            around_them: the kind that images are counted as which lie there.
        """
        found, around = [], _inodes_around(directory)
        for entry in _entries(directory):
            if why := _why_not(entry, around, follows=True):
                self.pass_over(why, entry.path)
            elif entry.is_dir():
                found.append(Path(entry.path))
            else:
                self.pass_over(around_them if _is_image(entry) else _kind(entry), entry.path)
        return found

    def pass_over(self, kind: str, path: str | Path) -> None:
        name = os.path.relpath(path, self.home)
        self.passed_over.add(kind, os.fsencode(name).decode("utf-8", "backslashreplace"))

    def _images(
        self, directory: str | Path, around: Sequence[Inode], is_linked: bool
    ) -> Iterator[ImageFile]:
        for entry in _entries(directory):
            if why := _why_not(entry, around, follows=self.follows_links):
                self.pass_over(why, entry.path)
            elif entry.is_dir():
                inside = (*around, _inode(entry.stat()))
                yield from self._images(entry.path, inside, is_linked or entry.is_symlink())
            elif _is_image(entry):
                yield ImageFile(entry.path, entry.stat(), is_linked or entry.is_symlink())
            else:
                self.pass_over(_kind(entry), entry.path)


def children(directory: Path) -> Iterator[tuple[str, bool]]:
    """Yield the names of the directories and images in a directory, and which are directories."""
    around = _inodes_around(directory)
    with os.scandir(directory) as entries:
        for entry in entries:
            if _why_not(entry, around, follows=True) is None and (
                entry.is_dir() or _is_image(entry)
            ):
                yield entry.name, entry.is_dir()


def _why_not(entry: "os.DirEntry[str]", around: Sequence[Inode], *, follows: bool) -> str | None:
    """Return why something is neither opened nor listed, whatever its extension."""
    if entry.name.startswith("."):
        return HIDDEN
    if is_clutter(f"{entry.name}/_"):
        return CLUTTER
    if entry.is_symlink():
        return _why_not_link(entry, around, follows=follows)
    return None if entry.is_dir() or entry.is_file() else SPECIAL


def _why_not_link(
    entry: "os.DirEntry[str]", around: Sequence[Inode], *, follows: bool
) -> str | None:
    try:
        target = entry.stat()
    except OSError as error:
        if isinstance(error, PermissionError):
            raise
        return DEAD_LINK  # it leads nowhere, or in a circle
    if stat.S_ISDIR(target.st_mode):
        if _inode(target) in around:
            return LOOP
        return None if follows else LINKED_DIRECTORY
    return None if stat.S_ISREG(target.st_mode) else SPECIAL


def _entries(directory: str | Path) -> "list[os.DirEntry[str]]":
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _inodes_around(directory: Path) -> tuple[Inode, ...]:
    """Return a directory and all above it."""
    real = directory.resolve()
    return tuple(_inode(place.stat()) for place in (real, *real.parents))


def _inode(found: os.stat_result) -> Inode:
    return found.st_dev, found.st_ino


def _is_image(entry: "os.DirEntry[str]") -> bool:
    return Path(entry.name).suffix[1:].lower() in IMAGE_EXTENSIONS


def _kind(entry: "os.DirEntry[str]") -> str:
    return Path(entry.name).suffix.lower() or "no extension"
