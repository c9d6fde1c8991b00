"""Batches made by worker processes, in memory that is used again and again.

Only a slot's number and the labels go through a queue: the pixels are written by the worker where
the rank reads them, as uint8, channels-last. Normalisation happens on the device, where a byte has
travelled a quarter of the way that a float would.
"""

import atexit
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from data_sharding.errors import DataError, UnavailableError
from data_sharding.io.worker_process import (
    exit_with_parent,
    forkserver_context,
    kill_workers,
    signals_blocked,
)
from data_sharding.loading.datasets import BatchDataset, BatchMeta
from data_sharding.loading.shared_buffers import SHARED_MEMORY, SharedBuffers, check_space
from data_sharding.storage.prefetch import DeliveryCounter, prefetching

_PREFETCH = 2  # batches that every worker makes before they are asked for
_IN_USE = 2  # batches that are read: the one in use and the one on its way to the device


class Batch(NamedTuple):
    """Samples on their way to the device; valid until the next but one is asked for.

    images: uint8 (n * views, channels, size, size), channels-last in memory, 0..255.
    labels: int64 (n,), or float32 (n, classes) where a sample has several.
    ids: int64 (n,), the samples: in training with those in place of what could not be read.
    readable: bool (n,); False in evaluation where an image could not be decoded.
    bad: a line for each sample that could not be read, with shard, key and reason.
    damaged: such a line for each that was read although a decoder has put up with damage.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    readable: torch.Tensor
    bad: list[str]
    damaged: Sequence[str] = ()


def iter_batches(
    dataset: BatchDataset,
    names: Iterable[object],
    num_workers: int,
    *,
    pin_memory: bool = False,
    num_held: int = 0,
) -> Generator[Batch, None, None]:
    """Yield the batches called `names`, in that order, made by `num_workers` processes.

    0 workers reads in this process.

    Args:
        pin_memory: the device copies from where they lie.
        num_held: so many more batches stay valid.

    Raises:
        DataError, UnavailableError: there is no room for them, or for the workers.
    """
    num_slots = _num_slots(num_workers, num_held)
    check_space(ring_bytes(dataset, num_workers, num_held), dataset.size_key)
    with _explained(num_workers), ExitStack() as begun:  # which is ended if the rest fails
        shards = dataset.shards
        progress = begun.enter_context(
            prefetching(shards.store, shards.manifest.shards, names, dataset.shards_of)
        )
        ring = begun.enter_context(
            SharedBuffers(num_slots, dataset.max_bytes, shared=num_workers > 0, pinned=pin_memory)
        )
        loader: DataLoader[tuple[int, BatchMeta | DataError]] = DataLoader(
            _IntoBuffer(dataset, ring),
            batch_size=None,
            sampler=_WithSlot(names, num_slots),
            num_workers=num_workers,
            prefetch_factor=_PREFETCH if num_workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=_begin_worker,
            multiprocessing_context=forkserver_context(__name__) if num_workers else None,
            generator=torch.Generator(),  # a seed is drawn here, though nobody uses it
        )
        made = _started(loader)
        return _batches(made, ring, progress, begun.pop_all())


def _started(loader: "DataLoader[Any]") -> Iterator[tuple[int, BatchMeta | DataError]]:
    """Start the workers; whatever comes of it, this process ends them when it ends."""
    try:
        with signals_blocked() if loader.num_workers else nullcontext():
            return iter(loader)
    finally:
        atexit.unregister(kill_workers)
        atexit.register(kill_workers)  # anew, to come before what torch has registered just now


@contextmanager
def _explained(num_workers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"the {num_workers} workers that read data cannot be started: {error}. Nothing can be "
            f"loaded. Look at what is left of {SHARED_MEMORY} (docker: --shm-size), of open files "
            "and of processes (ulimit -n, -u), or set data.num_workers lower."
        ) from error


def ring_bytes(dataset: BatchDataset, num_workers: int, num_held: int = 0) -> int:
    """Return the shared memory that `iter_batches` takes for a data set."""
    return _num_slots(num_workers, num_held) * dataset.max_bytes if num_workers else 0


def _num_slots(num_workers: int, num_held: int) -> int:
    return _PREFETCH * num_workers + _IN_USE + num_held


def _batches(
    made: Iterator[tuple[int, BatchMeta | DataError]],
    ring: SharedBuffers,
    progress: DeliveryCounter,
    begun: ExitStack,
) -> Generator[Batch, None, None]:
    with begun:
        for slot, filled in made:
            if isinstance(filled, DataError):
                raise filled
            progress.advance()
            yield Batch(
                ring.view(slot, filled.shape).permute(0, 3, 1, 2),
                torch.from_numpy(filled.labels),
                torch.from_numpy(filled.ids),
                torch.from_numpy(filled.readable),
                filled.bad,
                filled.damaged,
            )


class _IntoBuffer(Dataset[tuple[int, BatchMeta | DataError]]):
    """(slot, name) -> what is in the slot now, or why nothing is.

    An error that a person has to read is handed over as it is: one that is raised in a worker
    arrives with torch's tracebacks for its message.
    """

    def __init__(self, dataset: BatchDataset, ring: SharedBuffers) -> None:
        self._dataset, self._ring = dataset, ring

    def __getitem__(self, slot_and_name: tuple[int, Any]) -> tuple[int, BatchMeta | DataError]:
        slot, name = slot_and_name
        try:
            return slot, self._dataset.write_batch(name, self._ring.slot(slot))
        except DataError as error:
            return slot, error


class _WithSlot:
    """Names, each with the slot that its batch is to be made in."""

    def __init__(self, names: Iterable[object], num_slots: int) -> None:
        self._names, self._num_slots = names, num_slots

    def __iter__(self) -> Iterator[tuple[int, object]]:
        return ((i % self._num_slots, name) for i, name in zip(count(), self._names, strict=False))


def _as_it_is(made: Any) -> Any:
    return made


def _begin_worker(worker: int) -> None:
    exit_with_parent()
