"""ImageNet (ILSVRC 2012) straight from its archives: a tar of tars, a tar, and the development kit.

Nothing is unpacked to a disk: the archives' headers are walked once, and an image is read from its
place in the archive when it is written. Classes are the WordNet ids in ASCII order, as everybody's
labels are, not the kit's ILSVRC2012_ID. O. Russakovsky et al., IJCV 115, 2015; the layout is that
which torchvision.datasets.ImageNet unpacks.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.io.packed_strings import PackedStrings
from data_sharding.io.text import pluralize
from data_sharding.sources.base import ListingDigest, Sample, Source

NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
MD5 = {
    "train": "1d675b47d978889d74fa0da5fadfb00e",
    "val": "29b22e2961454d5413ddabcf34fc5622",
    "devkit": "fa75699e90414af021442c21a62c3abf",
}
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_CHUNK = 16 << 20
_END = bytes(tarfile.BLOCKSIZE)  # a tar ends with two blocks of zeros


@dataclass(frozen=True)
class Archives:
    """The three files, as they are downloaded."""

    train: Path
    val: Path
    devkit: Path

    def named(self) -> dict[str, Path]:
        return {"train": self.train, "val": self.val, "devkit": self.devkit}


@dataclass(frozen=True, eq=False)
class ArchivedImages:
    """Images that lie in an archive, by their place; `names` are without their extension."""

    archive: Path
    names: PackedStrings
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        name, start, size = self.names[index], int(self.starts[index]), int(self.sizes[index])
        return Sample(
            key=f"{index:08d}-{name}",
            extension="jpeg",
            label=int(self.labels[index]),
            origin=f"{self.archive}: {name}",
            read=partial(_read, self.archive, start, size),
        )


def imagenet(archives: Archives, *, is_subset: bool, on_checked: Callable[[int], None]) -> Source:
    """Return the images of both splits.

    Args:
        is_subset: archives of the same layout that somebody made smaller: neither the counts nor
            the digests of ImageNet's own are asked for.
        on_checked: is called with how many megabytes of the archives have been checked.

    Raises:
        DataError: an archive is not there, not what it should be, or does not fit the others.
    """
    for name, path in archives.named().items():
        if not path.is_file():
            raise DataError(f"no file at {path}, the {name} archive: nothing was written.")
    if not is_subset:
        _check_digests(archives, on_checked)
    tally = ListingDigest()
    wnids, ids, truth = _read_kit(archives.devkit)
    train = _train_images(archives.train, wnids, tally)
    val = _val_images(archives.val, truth, {i: wnids.index(w) for i, w in ids.items()}, tally)
    if not is_subset:
        _check_counts(len(wnids), len(train), len(val))
    facts = {"kind": "imagenet", **tally.facts}
    sizes = {"train": train.sizes, "val": val.sizes}
    times = "" if not is_subset else _times(archives)  # ImageNet's own have digests
    splits = {"train": train, "val": val}
    return Source(tuple(wnids), splits, facts, num_bytes=sizes, times_sha256=times)


def _times(archives: Archives) -> str:
    times = [path.stat().st_mtime_ns for path in archives.named().values()]
    return hashlib.sha256(str(times).encode()).hexdigest()


def _train_images(archive: Path, wnids: list[str], tally: ListingDigest) -> ArchivedImages:
    names, starts, sizes, labels = list[str](), list[int](), list[int](), list[int]()
    seen = set[str]()
    file = _open(archive)
    for class_tar, start, class_bytes in _members(file, 0, archive.stat().st_size, archive):
        wnid = class_tar.removesuffix(".tar")
        if wnid not in wnids:
            raise DataError(
                f"{archive} holds {class_tar}, a class that the development kit does not know: "
                "nothing was written. Take the archives of one year, ILSVRC 2012."
            )
        seen.add(wnid)
        label = wnids.index(wnid)
        inside = _members(file, start, start + class_bytes, f"{archive}: {class_tar}")
        for name, place, size in inside:
            names.append(_stem(name))
            starts.append(place)
            sizes.append(size)
            labels.append(label)
            tally.add(f"train/{name}", size)
    if missing := sorted(set(wnids) - seen):
        raise DataError(
            f"{archive} lacks {pluralize(len(missing), 'class')}, {missing[0]} for one: nothing "
            "was written. Download it again."
        )
    return _archived(archive, names, starts, sizes, labels)


def _val_images(
    archive: Path, truth: list[int], labels_of: dict[int, int], tally: ListingDigest
) -> ArchivedImages:
    found = _members(_open(archive), 0, archive.stat().st_size, archive)
    if len(found) != len(truth):
        raise DataError(
            f"{archive} has {len(found)} images, and the development kit {len(truth)} labels: "
            "which belongs to which cannot be told, so nothing was written. Download both again."
        )
    for number, (name, _, size) in enumerate(found, start=1):
        if not _stem(name).endswith(f"_{number:08d}"):
            raise DataError(
                f"{archive}: {name} is where image {number} should be, so labels would be shifted: "
                "nothing was written. Download it again."
            )
        tally.add(f"val/{name}", size)
    names, starts, sizes = (list(column) for column in zip(*found, strict=True))
    labels = [labels_of[one] for one in truth]
    return _archived(archive, [_stem(name) for name in names], starts, sizes, labels)


def _archived(
    archive: Path, names: list[str], starts: list[int], sizes: list[int], labels: list[int]
) -> ArchivedImages:
    arrays = (np.array(column, dtype=np.int64) for column in (starts, sizes, labels))
    return ArchivedImages(archive, PackedStrings(names), *arrays)


def _members(file: int, start: int, stop: int, where: object) -> list[tuple[str, int, int]]:
    """Return name, place in the file and size of the members of a tar at [start, stop), by name.

    Names are taken as names, never as paths. `tarfile` would take what is damaged for the end.
    Nothing is dropped or taken twice: links, copies and tars behind the end are refused.
    """
    found, place = dict[str, tuple[int, int]](), start
    while (block := os.pread(file, tarfile.BLOCKSIZE, place)) != _END:
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _no_tar(where, str(error)) from None
        data = place + tarfile.BLOCKSIZE
        place = data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if place > stop:
            raise _no_tar(where, f"{member.name} ends behind its end")
        name = member.name.rpartition("/")[2]
        if member.islnk() or member.issym():
            raise _no_tar(where, f"{name} is a link and holds no image")
        if name in found and member.isreg():
            raise _no_tar(where, f"{name} is in it twice")
        if member.isreg():
            found[name] = data, member.size
    while chunk := os.pread(file, min(_CHUNK, stop - place), place):
        if chunk.strip(b"\0"):
            raise _no_tar(where, "there is more behind its end")
        place += len(chunk)
    return sorted((name, data, size) for name, (data, size) in found.items())


def _no_tar(where: object, reason: str) -> DataError:
    return DataError(f"{where} is no whole tar: {reason}. Nothing was written. Download it again.")


def _read_kit(devkit: Path) -> tuple[list[str], dict[int, str], list[int]]:
    """Return the sorted WordNet ids, those of ILSVRC2012_IDs, and the latter of the val images."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    meta, truth = None, None
    try:
        with tarfile.open(devkit) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in ("meta.mat", _TRUTH):
                    file = tar.extractfile(member)
                    assert file is not None  # it is a file
                    if name == _TRUTH:
                        truth = [int(line) for line in file.read().split()]
                    else:
                        meta = loadmat(io.BytesIO(file.read()), squeeze_me=True)["synsets"]
    except (tarfile.TarError, MatReadError, EOFError, ValueError, KeyError, OSError) as error:
        raise _no_kit(devkit, str(error)) from None
    if meta is None or truth is None:
        raise _no_kit(devkit, f"it has no {_TRUTH if truth is None else 'meta.mat'}")
    ids = {int(one[0]): str(one[1]) for one in meta.tolist() if int(one[4]) == 0}  # leaves alone
    if unknown := sorted(set(truth) - set(ids)):
        raise _no_kit(devkit, f"it labels images with {unknown[0]}, which is no class of it")
    return sorted(ids.values()), ids, truth


def _no_kit(devkit: Path, reason: str) -> DataError:
    return DataError(
        f"{devkit} is no development kit of ILSVRC 2012: {reason}. Without it the validation "
        "images have no labels, so nothing was written. Its name is ILSVRC2012_devkit_t12.tar.gz."
    )


def _check_digests(archives: Archives, on_checked: Callable[[int], None]) -> None:
    num_bytes = 0
    for name, path in archives.named().items():
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                num_bytes += len(chunk)
                on_checked(num_bytes >> 20)
        if digest.hexdigest() != MD5[name]:
            raise DataError(
                f"{path} has the MD5 {digest.hexdigest()}, and ImageNet's {name} archive has "
                f"{MD5[name]}: it is damaged or another file, so nothing was written. Download it "
                "again; or say --subset, if it is a smaller one of the same layout."
            )


def _check_counts(num_classes: int, num_train: int, num_val: int) -> None:
    found, expected = (num_classes, num_train, num_val), (NUM_CLASSES, NUM_TRAIN, NUM_VAL)
    if found != expected:
        raise DataError(
            f"the archives have {num_classes} classes, {num_train} training and {num_val} "
            f"validation images; ImageNet has {expected}. Nothing was written. Say --subset, if "
            "this is meant to be a smaller one."
        )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122  a name, not a path


@lru_cache(maxsize=8)
def _open(archive: Path) -> int:
    return os.open(archive, os.O_RDONLY)


def _read(archive: Path, start: int, size: int) -> bytes:
    data = os.pread(_open(archive), size, start)
    if len(data) != size:
        raise OSError(f"the archive ends after {len(data)} of its {size} bytes")
    return data
