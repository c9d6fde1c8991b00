"""Micro-batches of training samples and batches of evaluation samples, made in DataLoader workers.

A data set here is a function from a name to a batch: (step, micro-batch) for training, a batch
number for evaluation. There is no iterator state to save: to resume at a step is to ask for it.

Batches leave a worker as uint8, channels-last; normalisation happens on the device, where a byte
has travelled a quarter of the way that a float would.
"""

import atexit
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_sharding import files
from data_sharding.augment import NUM_DRAWS, ChooseView, View
from data_sharding.counter import derive, uniform
from data_sharding.decode import decode
from data_sharding.manifest import DataError, Manifest, ShardInfo
from data_sharding.order import Order
from data_sharding.shard import BadSample, ShardReader

_MAX_OPEN_SHARDS = 256
_MAX_REPLACEMENTS = 64  # that many unreadable samples in a row are no accident


class Batch(NamedTuple):
    """Samples on their way to the device.

    images: uint8 (n, channels, size, size), channels-last in memory, 0..255.
    labels: int64 (n,).
    ids: int64 (n,), the samples asked for, whether or not they could be read.
    readable: bool (n,); False in evaluation where an image could not be decoded.
    bad: a line for each sample that could not be read, with shard, key and reason.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    readable: torch.Tensor
    bad: list[str]


class ShardSet:
    """The samples of one split, by id."""

    def __init__(self, url: str, split: str, manifest: Manifest) -> None:
        self.url, self.split, self.manifest = url, split, manifest
        sizes = np.array([shard.num_samples for shard in manifest.shards], dtype=np.int64)
        self._ends = np.cumsum(sizes)

    def read(self, sample: int, choose_view: ChooseView, draws: np.ndarray, out: np.ndarray) -> int:
        """Write a sample's pixels to `out` and return its label.

        Raises:
            BadSample: it cannot be decoded or has no valid label; the message names shard and key.
        """
        number = int(np.searchsorted(self._ends, sample, side="right"))
        shard = self.manifest.shards[number]
        index = sample - (int(self._ends[number]) - shard.num_samples)
        reader = _open(files.join(self.url, self.split, shard.name), shard)
        try:
            label = reader.label(index)
            if not 0 <= label < len(self.manifest.classes):
                raise BadSample(f"label {label} is not below {len(self.manifest.classes)}")
            decode(reader.image(index), partial(_call, choose_view, draws), out)
        except BadSample as error:
            raise BadSample(f"{self.split}/{shard.name}: {reader.key(index)}: {error}") from error
        return label


class TrainSet(Dataset[Batch]):
    """(step, micro-batch) -> Batch."""

    def __init__(
        self, shards: ShardSet, order: Order, choose_view: ChooseView, size: int, channels: int
    ) -> None:
        self.shards, self.order, self.choose_view = shards, order, choose_view
        self.size, self.channels = size, channels

    def __getitem__(self, name: tuple[int, int]) -> Batch:
        step, micro = name
        ids = self.order.micro_batch(step, micro)
        key = derive(self.order.seed, "augment", self.order.epoch(step), ids)
        draws = uniform(key, NUM_DRAWS)
        images = np.empty((len(ids), self.size, self.size, self.channels), dtype=np.uint8)
        labels = np.empty(len(ids), dtype=np.int64)
        bad: list[str] = []
        for i, sample in enumerate(ids):
            labels[i] = self._read(int(sample), draws[i], images[i], bad)
        return _batch(images, labels, ids, np.ones(len(ids), dtype=bool), bad)

    def _read(self, sample: int, draws: np.ndarray, out: np.ndarray, bad: list[str]) -> int:
        """Read a sample, or in its place the next readable one: the same one in every attempt."""
        num_samples = self.shards.manifest.num_samples
        for candidate in range(sample, sample + _MAX_REPLACEMENTS):
            try:
                return self.shards.read(candidate % num_samples, self.choose_view, draws, out)
            except BadSample as error:
                bad.append(str(error))
        raise DataError(
            f"{_MAX_REPLACEMENTS} samples in a row cannot be read, the last: {bad[-1]}. There is "
            f"nothing to put in their place. Check the data set at {self.shards.url}."
        )


class EvalSet(Dataset[Batch]):
    """Batch number -> Batch: consecutive samples, each exactly once, the last batch shorter."""

    def __init__(
        self, shards: ShardSet, batch_size: int, choose_view: ChooseView, size: int, channels: int
    ) -> None:
        self.shards, self.batch_size, self.choose_view = shards, batch_size, choose_view
        self.size, self.channels = size, channels

    def __len__(self) -> int:
        return math.ceil(self.shards.manifest.num_samples / self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        stop = min((number + 1) * self.batch_size, self.shards.manifest.num_samples)
        ids = np.arange(number * self.batch_size, stop)
        images = np.zeros((len(ids), self.size, self.size, self.channels), dtype=np.uint8)
        labels, readable = np.zeros(len(ids), dtype=np.int64), np.ones(len(ids), dtype=bool)
        bad: list[str] = []
        for i, sample in enumerate(ids):
            try:
                labels[i] = self.shards.read(int(sample), self.choose_view, np.empty(0), images[i])
            except BadSample as error:
                readable[i] = False
                bad.append(str(error))
        return _batch(images, labels, ids, readable, bad)


def load(
    dataset: Dataset[Batch], names: Iterable[object], num_workers: int, *, pin_memory: bool
) -> Iterator[Batch]:
    """Yield the batches called `names`, in that order, made by `num_workers` processes.

    Workers come from a fork server: forking a process that has threads and sockets of
    torch.distributed is unsafe. 0 workers reads in this process.
    """
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=names,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_end_with_the_rank,
        multiprocessing_context=_fork_server() if num_workers else None,
        generator=torch.Generator(),  # a seed is drawn here, though nobody uses it
    )
    with _signals_blocked() if num_workers else nullcontext():
        batches = iter(loader)
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # anew, to come before what torch has registered just now
    return batches


def _fork_server() -> ForkServerContext:
    """Return the context of a server that imports once what every worker needs.

    A worker runs the main module again. With torch and the other modules of main's package there
    already, that takes 0.1 s, not seconds.
    """
    context = multiprocessing.get_context("forkserver")
    main = sys.modules["__main__"].__spec__  # None for a script
    package = f"{main.name.partition('.')[0]}." if main else __name__
    modules = (name for name in sys.modules if name.startswith(package))
    context.set_forkserver_preload([__name__, *modules])
    return context


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Let the processes that are started here never see what Slurm sends to a whole step.

    Only the rank itself answers a signal, at a step boundary. A blocked signal stays blocked in
    children from their first instruction on, while the rank gets its own as soon as this ends.
    """
    for_the_rank = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, for_the_rank)
    try:
        resource_tracker.ensure_running()  # of multiprocessing; it unblocks two of them
        signal.pthread_sigmask(signal.SIG_BLOCK, for_the_rank)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_the_rank(worker: int) -> None:
    """Let a worker end when its rank was killed: its parent is the fork server, which lives on."""
    rank = multiprocessing.parent_process()
    assert rank is not None

    def wait() -> None:
        rank.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end_workers() -> None:
    """End the workers of a rank that crashed: they do not hear the SIGTERM that others send."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _batch(
    images: np.ndarray, labels: np.ndarray, ids: np.ndarray, readable: np.ndarray, bad: list[str]
) -> Batch:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # n h w c in memory, n c h w by name
    return Batch(
        pixels,
        torch.from_numpy(labels),
        torch.from_numpy(ids),
        torch.from_numpy(readable),
        bad,
    )


def _call(choose_view: ChooseView, draws: np.ndarray, width: int, height: int) -> View:
    return choose_view(width, height, draws)


@lru_cache(maxsize=_MAX_OPEN_SHARDS)
def _open(url: str, shard: ShardInfo) -> ShardReader:
    return ShardReader(_path(url), shard)


def _path(url: str) -> Path:
    """Return where a shard lies on this node."""
    path = files.local_path(url)
    if path is None:
        raise DataError(
            f"{url} is not a local path. Shards are read by memory map, so training cannot "
            "start. Copy the data set to a path that all nodes see and set data.url to it."
        )
    return path
