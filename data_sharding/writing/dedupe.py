"""Duplicate images, byte for byte: by the SHA-256 of their files.

All of val is kept. From train are dropped later copies of an image, and every copy of one in val,
since it would let a model be evaluated on what it has memorised. Of copies in folds one is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from data_sharding.format.location import publish_order
from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.sources.base import Sample, Source

_CHUNK = 256  # images a process hashes at a time
_DIGEST_BYTES = sha256().digest_size


@dataclass(frozen=True)
class Duplicates:
    """The samples to drop, as ascending indices of each split, and the findings to report."""

    dropped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    findings: QualityFindings = field(default_factory=QualityFindings)


DUPLICATES_JSON = TypeAdapter(Duplicates)


class _Chunk(NamedTuple):
    split: str
    indices: NDArray[np.int64]


def find_duplicates(
    source: Source, *, num_workers: int, on_progress: Callable[[int, int], None]
) -> Duplicates:
    """Hash and compare the images of a source whose file size is not unique.

    Args:
        on_progress: callback for the number of images hashed so far, and of all to be hashed.
    """
    candidates = _candidates(source)
    chunks = [
        _Chunk(split, indices[start : start + _CHUNK])
        for split, indices in candidates.items()
        for start in range(0, len(indices), _CHUNK)
    ]
    total = sum(map(len, candidates.values()))
    digests = parallel_map(
        _hash,
        source,
        chunks,
        num_workers=num_workers,
        on_progress=lambda done: on_progress(done, total),
    )
    return _compare(source, np.frombuffer(b"".join(digests), f"V{_DIGEST_BYTES}"), candidates)


def _candidates(source: Source) -> dict[str, NDArray[np.int64]]:
    """Return the indices of samples that can have a copy, those of val first."""
    order = publish_order(source.splits)
    if not source.num_bytes:
        return {split: np.arange(len(source.splits[split])) for split in order}
    all_sizes = np.concatenate([source.num_bytes[split] for split in order])
    sizes, counts = np.unique(all_sizes, return_counts=True)
    shared = sizes[counts > 1]
    return {split: np.flatnonzero(np.isin(source.num_bytes[split], shared)) for split in order}


def _hash(source: Source, chunk: _Chunk, advance: ProgressFn) -> bytes:
    digests = []
    for index in chunk.indices.tolist():
        digests.append(sha256(source.splits[chunk.split][index].read_or_raise()).digest())
        advance(1)
    return b"".join(digests)


def _compare(
    source: Source, digests: NDArray[np.void], candidates: Mapping[str, NDArray[np.int64]]
) -> Duplicates:
    """Find the digests, those of all candidates in order, that occurred before."""
    indices = np.concatenate([*candidates.values()])
    splits = np.repeat([*candidates], [len(members) for members in candidates.values()]).tolist()
    _, firsts, inverse = np.unique(digests, return_index=True, return_inverse=True)
    originals = firsts[inverse.ravel()]
    findings, dropped = QualityFindings(), dict[str, list[int]]()
    for i in np.flatnonzero(originals != np.arange(len(originals))).tolist():
        split, first = splits[i], splits[originals[i]]
        copy = source.splits[split][int(indices[i])]
        original = source.splits[first][int(indices[originals[i]])]
        what = f"{source.name(copy)} is {source.name(original)}"
        if split == "val":
            findings.add("duplicate_in_val", what)
        else:
            findings.add("leak" if first == "val" else "duplicate", what)
            dropped.setdefault(split, []).append(int(indices[i]))
        if {*copy.labels} != {*original.labels}:
            labels = f"{_class_names(source, original)} and {_class_names(source, copy)}"
            findings.add("label_conflict", f"{what}: {labels}")
    return Duplicates({split: tuple(numbers) for split, numbers in dropped.items()}, findings)


def _class_names(source: Source, sample: Sample) -> str:
    return "|".join(source.classes[label] for label in sample.labels)
