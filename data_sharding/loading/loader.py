"""Batches made by worker processes, in shared memory that is reused.

Only a slot's number and the labels go through a queue: a worker writes the pixels where the rank
reads them, as uint8, channels-last. Normalisation happens on the device: a byte is a quarter of the
traffic of a float.
"""

import atexit
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
from data_sharding.loading.split_reader import SplitReader
from data_sharding.storage.prefetch import ShardsOf, prefetching

_PREFETCH = 2  # batches that every worker makes ahead
_IN_USE = 2  # batches that are read: the one in use and the one on its way to the device

_Written = tuple[int, BatchMeta | DataError]  # the slot, and the batch in it or the error


class Batch(NamedTuple):
    """Samples on their way to the device, valid until the next but one batch is requested.

    images: uint8 (n * views, channels, size, size), channels-last in memory, 0..255.
    labels: int64 (n,), or float32 (n, classes) if a sample has several.
    ids, readable, bad, damaged: see `BatchMeta`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    readable: torch.Tensor
    bad: list[str]
    damaged: Sequence[str] = ()


def iter_batches(
    dataset: BatchDataset,
    keys: Iterable[object],
    num_workers: int,
    *,
    pin_memory: bool = False,
    num_held: int = 0,
) -> Generator[Batch, None, None]:
    """Yield the batches of `keys`, in that order, made by `num_workers` processes (0: this one).

    Args:
        pin_memory: whether to page-lock the memory, so that the device copies from it directly.
        num_held: the number of further batches that stay valid.

    Raises:
        DataError, UnavailableError: there is not enough memory, or the workers cannot be started.
    """
    num_slots = _num_slots(num_workers, num_held)
    check_space(ring_bytes(dataset, num_workers, num_held), dataset.size_key)
    with _start_errors(num_workers), ExitStack() as stack:  # closed if a later step fails
        on_delivery = [
            stack.enter_context(prefetching(source.store, source.manifest.shards, keys, shards_of))
            for source, shards_of in _sources(dataset)
        ]
        buffers = stack.enter_context(
            SharedBuffers(num_slots, dataset.max_bytes, shared=num_workers > 0, pinned=pin_memory)
        )
        loader: DataLoader[_Written] = DataLoader(
            _IntoBuffer(dataset, buffers),
            batch_size=None,
            sampler=((i % num_slots, key) for i, key in enumerate(keys)),
            num_workers=num_workers,
            prefetch_factor=_PREFETCH if num_workers else None,
            collate_fn=tuple,  # the default would convert arrays to tensors
            worker_init_fn=_begin_worker,
            multiprocessing_context=forkserver_context(__name__) if num_workers else None,
            generator=torch.Generator(),  # a seed is drawn from it, though nobody uses it
        )
        return _batches(_start(loader), buffers, on_delivery, stack.pop_all())


def ring_bytes(dataset: BatchDataset, num_workers: int, num_held: int = 0) -> int:
    """Return the shared memory that `iter_batches` needs for a data set."""
    return _num_slots(num_workers, num_held) * dataset.max_bytes if num_workers else 0


def _num_slots(num_workers: int, num_held: int) -> int:
    return _PREFETCH * num_workers + _IN_USE + num_held


def _sources(dataset: BatchDataset) -> Iterator[tuple[SplitReader, ShardsOf]]:
    """Yield each source of the samples, with the function from a batch to the shards of its own."""
    first = 0
    for source in dataset.shards.sources:
        own = range(first, first + source.num_shards)
        yield source, partial(_own_shards, dataset.shards_of, own)
        first = own.stop


def _own_shards(shards_of: ShardsOf, own: range, key: object) -> NDArray[np.int64]:
    shards = shards_of(key)
    return shards[(shards >= own.start) & (shards < own.stop)] - own.start


def _start(loader: DataLoader[_Written]) -> Iterator[_Written]:
    """Start the workers, and have this process kill them when it ends, even if that fails."""
    try:
        with signals_blocked() if loader.num_workers else nullcontext():
            return iter(loader)
    finally:
        atexit.unregister(kill_workers)
        atexit.register(kill_workers)  # again, to run before what torch has registered just now


@contextmanager
def _start_errors(num_workers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"the {num_workers} workers that read data cannot be started: {error}. Nothing can be "
            "loaded",
            value=num_workers,
            hint=f"Check the free space of {SHARED_MEMORY} (docker: --shm-size) and the limits on "
            "open files and processes (ulimit -n, -u), or lower `num_workers`.",
        ) from error


def _batches(
    written: Iterator[_Written],
    buffers: SharedBuffers,
    on_delivery: Sequence[Callable[[], object]],
    stack: ExitStack,
) -> Generator[Batch, None, None]:
    with stack:
        for slot, meta in written:
            if isinstance(meta, DataError):
                raise meta
            for notify in on_delivery:
                notify()
            yield Batch(
                buffers.view(slot, meta.shape).permute(0, 3, 1, 2),
                torch.from_numpy(meta.labels),
                torch.from_numpy(meta.ids),
                torch.from_numpy(meta.readable),
                meta.bad,
                meta.damaged,
            )


class _IntoBuffer(Dataset[_Written]):
    """Writes the batch of a (slot, key) into the slot.

    A DataError is returned: one that is raised in a worker arrives with torch's tracebacks as its
    message.
    """

    def __init__(self, dataset: BatchDataset, buffers: SharedBuffers) -> None:
        self._dataset, self._buffers = dataset, buffers

    def __getitem__(self, slot_and_key: tuple[int, Any]) -> _Written:
        slot, key = slot_and_key
        try:
            return slot, self._dataset.write_batch(key, self._buffers.slot(slot))
        except DataError as error:
            return slot, error


def _begin_worker(worker: int) -> None:
    exit_with_parent()
