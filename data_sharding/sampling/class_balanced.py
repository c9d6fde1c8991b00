"""Class-balanced sampling: all classes are drawn equally often, whatever their sizes.

Draw number p, counted from the beginning of the run, is of class permutation[p mod C] of the cycle
p // C: every cycle draws each of the C classes once, in an order of its own. The j-th draw of a
class with n samples is chosen by a permutation for each j // n: none comes again before all have
come. So any step can be looked up directly.

The samples of a class are spread over the shards, and each step reads from most of them: this order
needs a data set that is on a local disk or fits the node's cache.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError, UnavailableError
from data_sharding.format.location import Location, find_file, write_files
from data_sharding.format.manifest import Manifest
from data_sharding.io import filesystem
from data_sharding.io.mapped_arrays import arrays_to_safetensors, mmap_safetensors
from data_sharding.io.node_files import node_copy
from data_sharding.rng import derive_key, permute_index
from data_sharding.sampling.sample_order import Ints, SampleDraw, check_divides

FILE_NAME = "class_index.safetensors"


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """The samples of each class.

    samples: int64 or uint32 (samples,), ids sorted by class, then by id; mapped from a file.
    ends: int64 (classes,), the end of each class in `samples`.
    """

    samples: NDArray[Any]
    ends: Ints


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """An order of training samples with all classes equally often; arguments as `SampleOrder`."""

    index: ClassIndex
    seed: int
    global_batch_size: int
    num_micro_batches: int

    def __post_init__(self) -> None:
        check_divides(self, "num_micro_batches", "global_batch_size")

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_micro_batches

    def micro_batch(self, step: int, micro: int) -> SampleDraw:
        """Look up the samples of micro-batch `micro` of a step."""
        first = step * self.global_batch_size + micro * self.micro_batch_size
        return self._draw(first + np.arange(self.micro_batch_size))

    def global_batch(self, step: int) -> SampleDraw:
        """Look up the samples of a step."""
        return self._draw(step * self.global_batch_size + np.arange(self.global_batch_size))

    def _draw(self, numbers: Ints) -> SampleDraw:
        samples, ends = self.index.samples, self.index.ends
        cycle, index = np.divmod(numbers, len(ends))
        label = permute_index(index, len(ends), derive_key(self.seed, "class-order", cycle))
        start = np.where(label > 0, ends[label - 1], 0)
        size = ends[label] - start
        passes, index = np.divmod(cycle, size)  # each cycle draws once from every class
        key = derive_key(self.seed, "in-class", label, passes)
        ids = np.asarray(samples[start + permute_index(index, size, key)], dtype=np.int64)
        outside = ids[(ids < 0) | (ids >= len(samples))]
        if len(outside):  # checked here since there may be too many to read them all beforehand
            raise _unusable(
                FILE_NAME, f"it lists the sample {outside[0]}, and there are {len(samples)}"
            )
        return SampleDraw(ids, passes)


def write_class_index(
    where: str | Location, split: str, manifest: Manifest, labels: Iterable[int]
) -> None:
    """Write the class index of a split.

    Args:
        labels: the labels of all samples of the split, in their order.
    """
    location = Location.of(where)
    _check_single_label(location, split, manifest)
    classes = np.fromiter(labels, dtype=np.int64)
    sizes = np.bincount(classes, minlength=len(manifest.classes))
    assert (len(classes), len(sizes)) == (manifest.num_samples, len(manifest.classes))
    empty = [manifest.classes[label] for label in np.flatnonzero(sizes == 0).tolist()]
    if empty:
        raise DataError(
            f"{location.base(split)} has no samples of {len(empty)} classes ({empty[0]}, "
            "...): they cannot be drawn, so no class index was written",
            value=empty[0],
            hint="Leave these classes out of the data set.",
        )
    samples = np.argsort(classes, kind="stable")
    arrays = {
        "samples": samples if len(samples) > 1 << 32 else samples.astype(np.uint32),
        "ends": np.cumsum(sizes),
        "of": _identity(manifest),
    }
    data = arrays_to_safetensors(arrays)
    write_files(
        location,
        split,
        lambda url_of: filesystem.write_bytes(url_of(FILE_NAME), data),
        anywhere=True,
    )


def read_class_index(where: str | Location, split: str, manifest: Manifest) -> ClassIndex:
    """Read the class index of a split."""
    location = Location.of(where)
    _check_single_label(location, split, manifest)
    url = location.files(split, FILE_NAME)[0]
    try:
        url = find_file(location, split, FILE_NAME)
        path = node_copy(url, f"{manifest.fingerprint}-{FILE_NAME}", _is_whole)
        arrays = mmap_safetensors(path)
        samples, ends, identity = (arrays[name] for name in ("samples", "ends", "of"))
    except DataError:
        raise
    except FileNotFoundError:
        raise _unusable(url, "it is missing") from None
    except OSError as error:
        raise UnavailableError(
            f"cannot read {url}: {error}. Class-balanced sampling needs it",
            value=url,
            hint="Check the credentials, the network and the disk.",
        ) from error
    except Exception as error:  # safetensors and numpy raise anything on other bytes
        raise _unusable(url, str(error)) from error
    if not np.array_equal(identity, _identity(manifest)):
        raise _unusable(url, "it is of another data set, or of this one before it was changed")
    if not _is_index(samples, ends, manifest):
        counts = f"{manifest.num_samples} samples among {len(manifest.classes)} classes"
        raise _unusable(url, f"it does not divide {counts}")
    return ClassIndex(samples, ends)


def _unusable(where: str, reason: str) -> DataError:
    return DataError(
        f"{where} cannot be used: {reason}. Class-balanced sampling needs it",
        value=where,
        hint="Write it with `stat` (`class_index`), or sample without `class_balanced`.",
    )


def _identity(manifest: Manifest) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(manifest.fingerprint), dtype=np.uint8)


def _is_index(samples: NDArray[Any], ends: NDArray[Any], manifest: Manifest) -> bool:
    """Check that every class has samples and that their number is right, but not which they are."""
    return (
        samples.shape == (manifest.num_samples,)
        and samples.dtype in (np.uint32, np.int64)
        and ends.shape == (len(manifest.classes),)
        and ends.dtype == np.int64
        and bool((np.diff(ends, prepend=0) > 0).all())
        and int(ends[-1]) == manifest.num_samples
    )


def _check_single_label(location: Location, split: str, manifest: Manifest) -> None:
    if manifest.labels.kind != "single":
        raise DataError(
            f"{location.base(split)} has {manifest.labels.kind} labels, so its samples do "
            "not have one class each and cannot be balanced",
            value=manifest.labels.kind,
            hint="Sample without `class_balanced`.",
        )


def _is_whole(path: Path) -> bool:
    try:
        return bool(mmap_safetensors(path))
    except (OSError, ValueError):
        return False
