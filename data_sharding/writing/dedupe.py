"""Images that are there more than once, byte for byte: by the SHA-256 of their files.

Whatever lies in val stays there. From train are left out later copies of an image, and every copy
of one that lies in val, since a model would be judged by what it has learned by heart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.image.quality_report import QualityFindings
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.sources.base import Sample, Source

_CHUNK = 256  # images a process hashes before it asks for more
_DIGEST_BYTES = sha256().digest_size


@dataclass(frozen=True)
class Duplicates:
    """The training samples to be left out, by number and ascending, and what is to be told."""

    left_out: tuple[int, ...]
    findings: QualityFindings

    def to_json(self) -> dict[str, Any]:
        return {"left_out": self.left_out, "findings": self.findings.to_json()}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Duplicates":
        return cls(tuple(values["left_out"]), QualityFindings.of_json(values["findings"]))


@dataclass(frozen=True)
class _Chunk:
    split: str
    numbers: NDArray[np.int64]


def find_duplicates(
    source: Source, *, num_workers: int, on_progress: Callable[[int, int], None]
) -> Duplicates:
    """Hash the images of a source and compare; only those whose size another one has, too.

    Args:
        on_progress: called with the number of images hashed and of all to be hashed.

    Raises:
        DataError: an image cannot be read.
    """
    splits = ("val", "train")  # in this order: an image of train that is in val is the copy
    candidates = _candidates(source, splits)
    chunks = [
        _Chunk(split, numbers[start : start + _CHUNK])
        for split, numbers in candidates.items()
        for start in range(0, len(numbers), _CHUNK)
    ]
    total = sum(map(len, candidates.values()))
    found = parallel_map(
        _hash,
        source,
        chunks,
        num_workers=num_workers,
        on_progress=lambda done: on_progress(done, total),
    )
    digests = np.frombuffer(b"".join(found), dtype=f"V{_DIGEST_BYTES}")
    return _compare(source, digests, candidates["val"], candidates["train"])


def _candidates(source: Source, splits: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """Return the numbers of the samples of each split that can have a copy."""
    if not source.num_bytes:
        return {split: np.arange(len(source.splits[split])) for split in splits}
    every = np.concatenate([source.num_bytes[split] for split in splits])
    values, counts = np.unique(every, return_counts=True)
    shared = values[counts > 1]
    return {split: np.flatnonzero(np.isin(source.num_bytes[split], shared)) for split in splits}


def _hash(source: Source, chunk: _Chunk, advance: ProgressFn) -> bytes:
    digests = []
    for number in chunk.numbers.tolist():
        sample = source.splits[chunk.split][number]
        digests.append(sha256(sample.read_or_raise()).digest())
        advance(1)
    return b"".join(digests)


def _compare(
    source: Source,
    digests: NDArray[np.void],
    val: NDArray[np.int64],
    train: NDArray[np.int64],
) -> Duplicates:
    """Compare the digests of some samples of val, followed by those of some of train."""
    _, firsts, inverse = np.unique(digests, return_index=True, return_inverse=True)
    originals = firsts[inverse.ravel()]
    findings, left_out = QualityFindings(), []

    def sample(i: int) -> Sample:
        in_val = i < len(val)
        return source.splits["val" if in_val else "train"][
            int(val[i] if in_val else train[i - len(val)])
        ]

    for i in np.flatnonzero(originals != np.arange(len(originals))).tolist():
        copy, original = sample(i), sample(int(originals[i]))
        what = f"{source.name(copy)} is {source.name(original)}"
        if i < len(val):
            findings.add("duplicate_in_val", what)
        else:
            findings.add("leak" if originals[i] < len(val) else "duplicate", what)
            left_out.append(int(train[i - len(val)]))
        if {*copy.labels} != {*original.labels}:
            labels = f"{_words(source, original)} and {_words(source, copy)}"
            findings.add("label_conflict", f"{what}: {labels}")
    return Duplicates(tuple(left_out), findings)


def _words(source: Source, sample: Sample) -> str:
    return "|".join(source.classes[number] for number in sample.labels)
