"""Samples become a data set: WebDataset shards and one manifest a split.

Samples are shuffled before they are cut into shards, so that a shard is a fair draw of its split.
Each shard is written straight to where it belongs, hashed on the way; one sample is in memory at a
time. Equal sources and settings give equal bytes.

A set is published whole or not at all: `train/manifest.json` is the last file written. While the
others are being written, `unfinished.json` marks what lies there as ours to overwrite.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import numpy as np
import webdataset

from data_sharding import files
from data_sharding.manifest import (
    DataError,
    Manifest,
    ShardInfo,
    read_manifest,
    url_of,
    write_manifest,
)
from data_sharding.sources import Sample, Samples, Source, permutation

SPLITS = ("val", "train")  # in the order of publishing
_MARK = "unfinished.json"


@dataclass(frozen=True)
class Dataset:
    """The manifests of a data set by split, and whether it was there already."""

    manifests: Mapping[str, Manifest]
    reused: bool


def write_dataset(
    source: Source,
    url: str,
    *,
    seed: int,
    samples_per_shard: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Write a source to a URL as WebDataset shards; a set that was made like this is kept as it is.

    Args:
        seed: of the order of the samples in the shards.
        samples_per_shard: at most; the shards of a split differ by one sample or none.
        on_progress: called after every sample with the number written and the number of all.

    Raises:
        DataError: the URL holds something else, an image cannot be read, or the URL cannot be
            written. Nothing is published then.
    """
    if samples_per_shard < 1:
        raise DataError(
            f"{samples_per_shard} samples per shard: no shard could hold any, so nothing was "
            "written. Use at least 1; 1000 to 10000 suit photographs."
        )
    facts = {**source.facts, "seed": seed, "samples_per_shard": samples_per_shard}
    try:
        if files.exists(url_of(url, "train")):
            return _reuse(url, facts)
        _claim(url, facts)
        return Dataset(_write_all(source, url, facts, _progress(source, on_progress)), reused=False)
    except (OSError, ImportError, ValueError) as error:  # the last two: fsspec, of the protocol
        raise DataError(
            f"cannot write {url}: {type(error).__name__}: {error}. Nothing was published: check "
            "the URL, the permissions and the free space, and run the same command again."
        ) from error


def _reuse(url: str, facts: Mapping[str, Any]) -> Dataset:
    """Return the set at a URL if it was made like this; a split is only there when it is whole."""
    manifests = {split: read_manifest(url, split) for split in SPLITS}
    there = manifests["train"].source
    if there == facts:
        return Dataset(manifests, reused=True)
    differing = sorted(name for name in {**there, **facts} if there.get(name) != facts.get(name))
    comparison = "; ".join(f"{name}: {there.get(name)} / {facts.get(name)}" for name in differing)
    raise DataError(
        f"{url} holds another data set (there / asked for: {comparison}). It was left as it is. "
        "Write to another URL, or remove that set first."
    )


def _claim(url: str, facts: Mapping[str, Any]) -> None:
    """Mark a URL as being written, and clear what a run that was killed has left there."""
    mark = files.join(url, _MARK)
    if files.exists(mark):
        _discard(url)
    for split in SPLITS:
        names = files.list_names(files.join(url, split))
        foreign = [name for name in names if name.endswith(".tar")]
        if foreign:
            raise DataError(
                f"{files.join(url, split)} holds shards without a manifest ({foreign[0]}, "
                f"{len(foreign)} in all). They were left as they are. Write to another URL, or "
                "remove them first."
            )
    files.write_bytes(mark, json.dumps(facts, indent=2).encode())


def _discard(url: str) -> None:
    """Remove an unfinished set: the manifests before the shards, and the mark last."""
    for split in reversed(SPLITS):
        files.remove(url_of(url, split))
    for split in SPLITS:
        for name in files.list_names(files.join(url, split)):
            if name.startswith("shard-") and name.endswith(".tar"):
                files.remove(files.join(url, split, name))
    files.remove(files.join(url, _MARK))


def _write_all(
    source: Source, url: str, facts: dict[str, Any], report: Callable[[], None]
) -> dict[str, Manifest]:
    try:
        manifests = {}
        for split in SPLITS:
            shards = tuple(_write_split(source.splits[split], url, split, facts, report))
            manifests[split] = Manifest(source.classes, shards, facts)
        for split in SPLITS:
            write_manifest(url, split, manifests[split])
    except BaseException:
        with suppress(Exception):  # the first error is the one to tell
            _discard(url)
        raise
    files.remove(files.join(url, _MARK))
    return manifests


def _write_split(
    samples: Samples, url: str, split: str, facts: Mapping[str, Any], report: Callable[[], None]
) -> Iterator[ShardInfo]:
    order = permutation(facts["seed"], f"shards/{split}", len(samples))
    num_shards = -(-len(samples) // facts["samples_per_shard"])
    for number, members in enumerate(np.array_split(order, num_shards)):
        name = f"shard-{number:06d}.tar"
        with files.create(files.join(url, split, name)) as file:
            tar = _Hashing(file)
            _write_shard(tar, (samples[i] for i in members.tolist()), report)
        yield ShardInfo(name, len(members), tar.num_bytes, tar.sha256.hexdigest())


def _write_shard(file: "_Hashing", samples: Iterable[Sample], report: Callable[[], None]) -> None:
    """Write samples as members KEY.cls and KEY.jpg, with nothing in them that varies."""
    settings = {"user": "tahoe", "group": "tahoe", "mode": 0o444, "mtime": 0, "encoder": False}
    with webdataset.TarWriter(file, **settings) as tar:
        for sample in samples:
            label = str(sample.label).encode("ascii")
            tar.write({"__key__": sample.key, sample.extension: _read(sample), "cls": label})
            report()


def _read(sample: Sample) -> bytes:
    try:
        return sample.read()
    except OSError as error:
        raise DataError(
            f"cannot read the image {sample.origin}: {error.strerror or error}. Nothing was "
            "published: make it readable, or remove it, and run the same command again."
        ) from error


class _Hashing:
    """A file to write to that knows the size and the digest of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.num_bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.num_bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)


def _progress(source: Source, on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """Return what is to be called after every sample."""
    if on_progress is None:
        return lambda: None
    num_samples = sum(len(source.splits[split]) for split in SPLITS)
    written = count(1)
    return lambda: on_progress(next(written), num_samples)
