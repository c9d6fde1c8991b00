"""ImageNet (ILSVRC 2012) straight from its archives: a tar of tars, a tar, and the development kit.

Nothing is unpacked to disk: the headers of the archives are walked once, and an image is read from
its position in the archive when it is written. Classes are the WordNet ids in ASCII order, as in
most published labels, not the kit's ILSVRC2012_ID. O. Russakovsky et al., IJCV 115, 2015; the
layout is the one that torchvision.datasets.ImageNet unpacks.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.io.text import pluralize
from data_sharding.sources.base import (
    ImageTable,
    Labels,
    ListingDigest,
    Sample,
    Source,
    read_members,
    source_error,
)
from data_sharding.sources.packed_strings import PackedStrings

NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
MD5 = {
    "train": "1d675b47d978889d74fa0da5fadfb00e",
    "val": "29b22e2961454d5413ddabcf34fc5622",
    "devkit": "fa75699e90414af021442c21a62c3abf",
}
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CHUNK = 16 << 20
_END = bytes(tarfile.BLOCKSIZE)  # a tar ends with two blocks of zeros
_DOWNLOAD = "Download it again."


@dataclass(frozen=True)
class Archives:
    """The three files, as they are downloaded."""

    train: Path
    val: Path
    devkit: Path


class _Image(NamedTuple):
    """An image file in an archive."""

    name: str
    start: int
    num_bytes: int
    label: int


@dataclass(frozen=True, eq=False)
class ArchivedImages(ImageTable):
    """Images by their position in an archive."""

    archive: Path
    names: PackedStrings
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, archive: Path, images: list[_Image]) -> "ArchivedImages":
        names = PackedStrings(_stem(image.name) for image in images)
        numbers = np.array([image[1:] for image in images], dtype=np.int64).reshape(-1, 3)
        starts, sizes, labels = np.ascontiguousarray(numbers.T)
        indices = np.arange(len(images))
        return cls(archive, names, starts, labels=Labels(labels), file_bytes=sizes, indices=indices)

    def sample(self, number: int, label: int | tuple[int, ...] | None) -> Sample:
        name, start = self.names[number], int(self.starts[number])
        read = partial(_read, self.archive, start, int(self.file_bytes[number]))
        return Sample(f"{number:08d}-{name}", "jpeg", label, f"{self.archive}: {name}", read)


def imagenet(archives: Archives, *, is_subset: bool, on_checked: Callable[[int], None]) -> Source:
    """List the images of both splits.

    Args:
        is_subset: whether the archives are smaller ones of the same layout, whose counts and
            digests are not those of ImageNet.
        on_checked: callback for the number of megabytes checked so far.
    """
    for name, path in vars(archives).items():
        if not path.is_file():
            raise source_error(f"no file at {path}, the {name} archive", path)
    if not is_subset:
        _check_digests(archives, on_checked)
    digest = ListingDigest()
    wnids, ids, truth = _read_kit(archives.devkit)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    splits = {
        "train": _list_train(archives.train, labels, digest),
        "val": _list_val(archives.val, [labels[ids[number]] for number in truth], digest),
    }
    if not is_subset:
        _check_counts(len(wnids), len(splits["train"]), len(splits["val"]))
    return Source(
        tuple(wnids),
        splits,
        {"kind": "imagenet", **digest.facts},
        times_sha256=_times_sha256(archives) if is_subset else "",  # the originals have digests
    )


def _times_sha256(archives: Archives) -> str:
    times = [path.stat().st_mtime_ns for path in vars(archives).values()]
    return hashlib.sha256(str(times).encode()).hexdigest()


def _list_train(archive: Path, labels: dict[str, int], digest: ListingDigest) -> ArchivedImages:
    file, images, wnids = _open(archive), list[_Image](), set[str]()
    for class_tar, start, class_bytes in _members(file, 0, archive.stat().st_size, archive):
        wnid = class_tar.removesuffix(".tar")
        if wnid not in labels:
            problem = f"{archive} has {class_tar}, and the development kit no such class"
            raise source_error(problem, class_tar, "Use the archives of one year, ILSVRC 2012.")
        wnids.add(wnid)
        for image in _members(file, start, start + class_bytes, f"{archive}: {class_tar}"):
            images.append(_Image(*image, labels[wnid]))
            digest.add(f"train/{image[0]}", image[2])
    if missing := sorted(labels.keys() - wnids):
        problem = f"{archive} lacks {pluralize(len(missing), 'class')}, {missing[0]} for one"
        raise source_error(problem, missing[0], _DOWNLOAD)
    return ArchivedImages.of(archive, images)


def _list_val(archive: Path, labels: list[int], digest: ListingDigest) -> ArchivedImages:
    members = _members(_open(archive), 0, archive.stat().st_size, archive)
    if len(members) != len(labels):
        problem = f"{archive} has {len(members)} images, the development kit {len(labels)} labels"
        raise source_error(problem, len(members), "Download both again.")
    for number, (name, _, num_bytes) in enumerate(members, start=1):
        if not _stem(name).endswith(f"_{number:08d}"):
            problem = f"{archive} has {name} in place of image {number}: labels would be shifted"
            raise source_error(problem, name, _DOWNLOAD)
        digest.add(f"val/{name}", num_bytes)
    images = [_Image(*member, label) for member, label in zip(members, labels, strict=True)]
    return ArchivedImages.of(archive, images)


def _members(file: int, start: int, stop: int, where: object) -> list[tuple[str, int, int]]:
    """List the files of a tar at [start, stop) by name: name, position and size.

    Names are used as names, never as paths. `tarfile` would take damage for the end of the archive.
    Nothing is dropped or taken twice: links, copies and tars behind the end are refused.
    """
    members, position = dict[str, tuple[int, int]](), start
    while (block := os.pread(file, tarfile.BLOCKSIZE, position)) != _END:
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _bad_tar(where, str(error)) from None
        data = position + tarfile.BLOCKSIZE
        position = data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if position > stop:
            raise _bad_tar(where, f"{member.name} is truncated")
        name = member.name.rpartition("/")[2]
        if member.islnk() or member.issym():
            raise _bad_tar(where, f"{name} is a link and holds no image")
        if member.isreg() and name in members:
            raise _bad_tar(where, f"{name} is in it twice")
        if member.isreg():
            members[name] = data, member.size
    while chunk := os.pread(file, min(_CHUNK, stop - position), position):
        if chunk.strip(b"\0"):
            raise _bad_tar(where, "there is more behind its end")
        position += len(chunk)
    return sorted((name, *position_and_size) for name, position_and_size in members.items())


def _read_kit(devkit: Path) -> tuple[list[str], dict[int, str], list[int]]:
    """Return the sorted WordNet ids, those by ILSVRC2012_ID, and that ID of each val image."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        files = read_members(devkit, ("meta.mat", _TRUTH))
        if missing := {"meta.mat", _TRUTH} - files.keys():
            raise ValueError(f"it has no {min(missing)}")
        truth = [int(line) for line in files[_TRUTH].split()]
        synsets = loadmat(io.BytesIO(files["meta.mat"]), squeeze_me=True)["synsets"]
        leaves = [synset for synset in synsets.tolist() if int(synset[4]) == 0]
        ids = {int(synset[0]): str(synset[1]) for synset in leaves}
        if unknown := sorted(set(truth) - set(ids)):
            raise ValueError(f"it labels images with {unknown[0]}, which is none of its classes")
    except (tarfile.TarError, MatReadError, EOFError, ValueError, KeyError, OSError) as error:
        problem = f"{devkit} is no development kit of ILSVRC 2012: {error}"
        raise source_error(problem, devkit, "Use ILSVRC2012_devkit_t12.tar.gz.") from None
    return sorted(ids.values()), ids, truth


def _check_digests(archives: Archives, on_checked: Callable[[int], None]) -> None:
    num_bytes = 0
    for name, path in vars(archives).items():
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                num_bytes += len(chunk)
                on_checked(num_bytes >> 20)
        if digest.hexdigest() != MD5[name]:
            raise source_error(
                f"{path} has the MD5 {digest.hexdigest()}, not {MD5[name]} of ImageNet's {name}",
                digest.hexdigest(),
                "Download it again; or use `subset` for smaller archives of the same layout.",
            )


def _check_counts(*counts: int) -> None:
    expected = (NUM_CLASSES, NUM_TRAIN, NUM_VAL)
    if counts != expected:
        problem = f"classes, training and validation images are {counts}, not {expected}"
        raise source_error(problem, counts, "Use `subset` if they are meant to be fewer.")


def _bad_tar(where: object, reason: str) -> DataError:
    return source_error(f"{where} is no complete tar: {reason}", where, _DOWNLOAD)


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122  a name, not a path


@lru_cache(maxsize=8)
def _open(archive: Path) -> int:
    return os.open(archive, os.O_RDONLY)


def _read(archive: Path, start: int, num_bytes: int) -> bytes:
    data = os.pread(_open(archive), num_bytes, start)
    if len(data) != num_bytes:
        raise OSError(f"the archive ends after {len(data)} of its {num_bytes} bytes")
    return data
