"""Group the members of a tar to samples, by webdataset's rule, and count all other members.

A sample is a run of consecutive members whose names agree up to the first dot of the file name: its
key. The text after that dot is the extension.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import UserError
from data_sharding.format.image_formats import IMAGE_EXTENSIONS
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io.clutter import is_clutter
from data_sharding.io.text import Tally

# webdataset.tariterators, 1.0: base_plus_ext and tar_file_iterator's skip_meta
KEY_AND_EXTENSION = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_METADATA = re.compile(r"__[^/]*__($|/)")

ABSENT, UNKNOWN = -1, -2  # instead of an offset: no image; only members of unknown kinds

FILE, DIRECTORY, SYMLINK, SPECIAL = "file", "directory", "symbolic link", "special file"
CLUTTER, METADATA, NO_EXTENSION = "file of the system", "metadata", "file without an extension"
MORE_IMAGES = "image with another dot in its name"
OTHER_CLASSES = "sample of another class"
REPEATED_KEY, MORE_ARCHIVES = "repeated key", "archive behind another"

_FIRST_DOT = "the key of a sample ends at the first dot of its file names, as in webdataset"
_OR_REPLACE_DOTS = "or replace the other dots in the names by '_'."


class UnusableError(UserError):
    """A file is no shard, or its members form no samples."""


class Member(NamedTuple):
    """A member of a tar."""

    name: str
    start: int  # of its header
    offset: int = 0  # of its bytes
    num_bytes: int = 0
    kind: str = FILE


class GroupedMembers(NamedTuple):
    """The samples of a shard.

    rows: offsets and sizes in bytes, shape (samples, 5): start of the sample's first header,
        offset and size of its image, offset and size of its label.
    passed_over: members that are neither image nor label of a sample, by kind.
    remarks: oddities that do no harm by themselves, by kind.
    """

    rows: NDArray[np.int64]
    passed_over: Tally
    remarks: Tally


def group_members(archives: Iterable[Sequence[Member]], rule: SampleRule) -> GroupedMembers:
    """Group the members of a file's archives to samples, none of which crosses an archive.

    Raises:
        UnusableError: a sample lacks its image or its label, or has two; or there is no sample.
    """
    rows, passed_over, remarks = array("q"), Tally(), Tally()
    for number, members in enumerate(archives):
        if number and members:
            remarks.add(MORE_ARCHIVES, members[0].name)
        rows.extend(_Archive(members, rule, passed_over, remarks).rows())
    if not rows:
        raise UnusableError("it holds no samples, that is, no members KEY.jpg and KEY.cls")
    return GroupedMembers(np.frombuffer(rows, dtype=np.int64).reshape(-1, 5), passed_over, remarks)


class _Archive:
    def __init__(
        self, members: Sequence[Member], rule: SampleRule, passed_over: Tally, remarks: Tally
    ) -> None:
        self._members, self._pass_over, self._remarks = members, passed_over.add, remarks
        self._label = None if rule.labels.kind == "none" else rule.labels.extension
        self._ranks, self._is_chosen = rule.image_ranks, rule.image is not None
        self._key: str | None = None
        self._keys, self._extensions = set[str](), set[str]()
        self._row = [0] * 5

    def rows(self) -> "array[int]":
        rows = array("q")
        for member in self._members:
            if match := self._match(member):
                if match[1] != self._key:
                    self._finish(rows)
                    self._begin(match[1], member)
                self._add(member, match[2].lower())
        self._finish(rows)
        return rows

    def _begin(self, key: str, member: Member) -> None:
        self._key, self._extensions = key, set()
        self._row = [member.start, ABSENT, 0, ABSENT, 0]
        self._image: tuple[int, Member] | None = None  # the image so far, and its rank
        if key in self._keys:
            self._remarks.add(REPEATED_KEY, key)
        self._keys.add(key)

    def _add(self, member: Member, extension: str) -> None:
        row = self._row
        if extension in self._extensions:  # webdataset's error too
            raise UnusableError(f"the sample {self._key!r} has two members .{extension}")
        self._extensions.add(extension)
        if extension == self._label:
            row[3:] = member.offset, member.num_bytes
        elif extension in self._ranks:
            self._add_image(member, self._ranks[extension])
        else:
            row[1] = UNKNOWN if row[1] == ABSENT else row[1]
            last = extension.rpartition(".")[2]
            is_odd = last in IMAGE_EXTENSIONS and not self._is_chosen
            self._pass_over(MORE_IMAGES if is_odd else f".{last}", member.name)

    def _add_image(self, member: Member, rank: int) -> None:
        """Take an image, or the better of two, which is that of the lower rank."""
        best = self._image
        if best is not None and best[0] == rank:
            raise UnusableError(
                f"the sample {self._key!r} has two images, {best[1].name} and {member.name}",
                hint="Choose one by its extension with `image`.",
            )
        if best is not None:
            worse = max((rank, member), best)[1]
            self._pass_over(f".{worse.name.rpartition('.')[2].lower()}", worse.name)
        rank, member = self._image = min((rank, member), best or (rank, member))
        self._row[1:3] = member.offset, member.num_bytes

    def _match(self, member: Member) -> re.Match[str] | None:
        """Split a name into key and extension; count a member that belongs to no sample."""
        if member.kind != FILE:
            kind = member.kind
        elif _METADATA.match(member.name):
            kind = METADATA
        elif is_clutter(member.name):
            kind = CLUTTER
        elif match := KEY_AND_EXTENSION.match(member.name):
            return match
        else:
            kind = NO_EXTENSION
        self._pass_over(kind, member.name)
        return None

    def _finish(self, rows: "array[int]") -> None:
        """Check the current sample, and append its row."""
        if self._key is None:
            return
        if len(self._extensions) > 2 and not self._is_chosen:
            self._refuse_swallowed()
        if self._row[1] == ABSENT:
            is_image = lambda name: name.rpartition(".")[2] in IMAGE_EXTENSIONS  # noqa: E731
            self._refuse("no image", "image", is_image)
        if self._row[3] == ABSENT and self._label is not None:
            missing = f"no label ({self._key}.{self._label})"
            self._refuse(missing, "label", lambda name: name.endswith(f".{self._label}"))
        rows.extend(self._row)

    def _refuse_swallowed(self) -> None:
        """Refuse two samples in one: an image and a label that agree beyond the first dot."""
        dotted = (ext.rpartition(".") for ext in self._extensions if "." in ext)
        stems = {stem for stem, _, last in dotted if last in IMAGE_EXTENSIONS}
        swallowed = sorted(stem for stem in stems if f"{stem}.{self._label}" in self._extensions)
        if swallowed and self._row[1] >= 0:
            raise UnusableError(
                f"the image and the label '{self._key}.{swallowed[0]}' would be lost in the sample "
                f"{self._key!r}: {_FIRST_DOT}",
                hint="If only one of these images counts, choose it by its extension with `image`, "
                f"{_OR_REPLACE_DOTS}",
            )

    def _refuse(self, missing: str, option: str, is_similar: Callable[[str], bool]) -> None:
        """Raise an error about a missing member, with the reason if it is known.

        Args:
            option: name of the parameter that chooses that member.
            is_similar: predicate of extensions that were probably meant to be the missing one.
        """
        similar = sorted(extension for extension in self._extensions if is_similar(extension))
        separate = next((m for m in self._members if self._is_separate(m)), None)
        reason = hint = ""
        if similar:
            reason = f": it has {self._key}.{similar[0]}, and {_FIRST_DOT}"
            hint = (
                f"If all samples have such members, choose them with `{option}`={similar[0]}, "
                f"{_OR_REPLACE_DOTS}"
            )
        elif separate and separate.kind == SYMLINK:
            reason = f": {separate.name} is a symbolic link, which holds no bytes"
            hint = "Pack the files again with `tar --dereference`."
        elif separate:
            reason = (
                f": {separate.name} is elsewhere in the tar, and the members of a sample must "
                "follow each other"
            )
            hint = "Pack the files again with `tar --sort=name`."
        raise UnusableError(f"the sample {self._key!r} has {missing}{reason}", hint=hint)

    def _is_separate(self, member: Member) -> bool:
        """Check whether a member has the key of the current sample and is not part of it."""
        match = KEY_AND_EXTENSION.match(member.name)
        if match is None or match[1] != self._key:
            return False
        return member.kind != FILE or match[2].lower() not in self._extensions
