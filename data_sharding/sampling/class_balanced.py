"""An order in which all classes come equally often, whatever their sizes.

Drawn sample number p, counted from the beginning of the run, is of class permutation[p mod C] of
the cycle p // C: every cycle takes each of the C classes once, in an order of its own. The j-th
draw of a class with n samples is one of them by a permutation for each j // n: none comes again
before all have come. So any step can be looked up without the steps before it.

The samples of a class lie all over the shards, and each step reads from most of them: this order
wants a data set that lies on a local disk, or fits the node's cache.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import DataError, UnavailableError
from data_sharding.format.manifest import Manifest
from data_sharding.io import filesystem
from data_sharding.io.mapped_arrays import arrays_to_safetensors, mmap_safetensors
from data_sharding.io.node_files import node_copy
from data_sharding.rng import derive_key, permute_index
from data_sharding.sampling.locate import Ints
from data_sharding.sampling.sample_order import SampleDraw

FILE_NAME = "class_index.safetensors"
_NUM_UINT32 = 1 << 32


@dataclass(frozen=True, eq=False)
class ClassIndex:
    """The samples of each class.

    samples: int64 or uint32 (samples,), ids sorted by class, then by id; mapped from a file.
    ends: int64 (classes,), where the samples of each class end.
    """

    samples: NDArray[Any]
    ends: Ints


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """The order of training samples with all classes equally often; see Order for the arguments."""

    index: ClassIndex
    seed: int
    global_batch_size: int
    num_micro_batches: int

    def __post_init__(self) -> None:
        if self.global_batch_size % self.num_micro_batches:
            raise ValueError(
                f"num_micro_batches={self.num_micro_batches} does not divide "
                f"global_batch_size={self.global_batch_size}"
            )

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.num_micro_batches

    def micro_batch(self, step: int, micro: int) -> SampleDraw:
        """Return the samples of micro-batch `micro` of a step."""
        first = step * self.global_batch_size + micro * self.micro_batch_size
        return self._draws(first + np.arange(self.micro_batch_size))

    def global_batch(self, step: int) -> SampleDraw:
        """Return the samples of a step."""
        return self._draws(step * self.global_batch_size + np.arange(self.global_batch_size))

    def _draws(self, number: Ints) -> SampleDraw:
        num_classes, ends = len(self.index.ends), self.index.ends
        cycle, place = np.divmod(number, num_classes)
        label = permute_index(place, num_classes, derive_key(self.seed, "class-order", cycle))
        start = np.where(label > 0, ends[label - 1], 0)
        size = ends[label] - start
        passes, place = np.divmod(cycle, size)  # each cycle draws once from every class
        key = derive_key(self.seed, "in-class", label, passes)
        ids = np.asarray(
            self.index.samples[start + permute_index(place, size, key)], dtype=np.int64
        )
        _check_ids(ids, len(self.index.samples))
        return SampleDraw(ids, passes)


def write_class_index(url: str, split: str, manifest: Manifest, labels: Iterable[int]) -> None:
    """Publish which samples each class has.

    Args:
        labels: of all samples of the split, in their order.

    Raises:
        DataError: a class has no samples, or samples have not one class each.
    """
    _check_kind(url, split, manifest)
    found = np.fromiter(labels, dtype=np.int64)
    sizes = np.bincount(found, minlength=len(manifest.classes))
    assert (len(found), len(sizes)) == (manifest.num_samples, len(manifest.classes))
    empty = [manifest.classes[label] for label in np.flatnonzero(sizes == 0).tolist()]
    if empty:
        raise DataError(
            f"{filesystem.join(url, split)} has no samples of {len(empty)} classes ({empty[0]}, "
            "...): they cannot be drawn as often as the others, so no class index was written. "
            "Leave these classes out of the data set."
        )
    samples = np.argsort(found, kind="stable")
    columns = {
        "samples": samples if len(samples) > _NUM_UINT32 else samples.astype(np.uint32),
        "ends": np.cumsum(sizes),
        "of": _identity(manifest),
    }
    filesystem.write_bytes(filesystem.join(url, split, FILE_NAME), arrays_to_safetensors(columns))


def read_class_index(url: str, split: str, manifest: Manifest) -> ClassIndex:
    """Return which samples each class has.

    Raises:
        DataError: nobody has written it, or it is not this data set's.
    """
    _check_kind(url, split, manifest)
    where = filesystem.join(url, split, FILE_NAME)
    again = f"`tahoe shard stat {shlex.quote(url)} --class-index`"
    try:
        path = node_copy(where, f"{manifest.fingerprint}-{FILE_NAME}", _is_whole)
        columns = mmap_safetensors(path)
        samples, ends, of = (columns[name] for name in ("samples", "ends", "of"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{where} is missing, and drawing all classes equally often needs it. Nothing was "
            f"started. Write it with {again}, or set recipe.balanced=false."
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"cannot read {where}: {error}. Nothing was started. Check the credentials, the "
            "network and the disk."
        ) from error
    except Exception as error:  # what safetensors and a mapping make of other bytes
        raise DataError(
            f"{where} cannot be used: {error}. Nothing was started. Write it again: {again}."
        ) from error
    if not np.array_equal(of, _identity(manifest)):
        raise DataError(
            f"{where} is of another data set, or of this one before it was changed, so it would "
            f"name other samples. Nothing was started. Write it again: {again}."
        )
    if not _is_index(samples, ends, manifest):
        raise DataError(
            f"{where} cannot be used: it does not divide {manifest.num_samples} samples among "
            f"{len(manifest.classes)} classes. Nothing was started. Write it again: {again}."
        )
    return ClassIndex(samples, ends)


def _identity(manifest: Manifest) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(manifest.fingerprint), dtype=np.uint8)


def _is_index(samples: NDArray[Any], ends: NDArray[Any], manifest: Manifest) -> bool:
    """Return whether every class has samples, and all of them are there; not which they are."""
    return (
        samples.shape == (manifest.num_samples,)
        and samples.dtype in (np.uint32, np.int64)
        and ends.shape == (len(manifest.classes),)
        and ends.dtype == np.int64
        and bool((np.diff(ends, prepend=0) > 0).all())
        and int(ends[-1]) == manifest.num_samples
    )


def _check_ids(ids: Ints, num_samples: int) -> None:
    """Check samples when they are drawn: there may be too many to read them all beforehand."""
    outside = ids[(ids < 0) | (ids >= num_samples)]
    if len(outside):
        raise DataError(
            f"{FILE_NAME} lists the sample {outside[0]}, and there are {num_samples}: it is "
            "damaged, and the batch cannot be made. Write it again: `tahoe shard stat URL "
            "--class-index`."
        )


def _check_kind(url: str, split: str, manifest: Manifest) -> None:
    if manifest.labels.kind != "single":
        raise DataError(
            f"{filesystem.join(url, split)} has {manifest.labels.kind} labels, so no sample is of "
            "one class: its classes cannot be balanced. Set recipe.balanced=false."
        )


def _is_whole(path: Path) -> bool:
    try:
        return bool(mmap_safetensors(path))
    except (OSError, ValueError):
        return False
