"""Measure iterating a data set without decoding, beside webdataset and the standard library.

    python tests/benchmarks/reading.py [URL_OF_A_SPLIT] [ROUNDS]

Every round runs every method, in a rotated order; medians are printed, with the ratio to Tahoe's of
the same round. One process, one thread, files in the page cache. Without a URL it makes 20,000
samples of 20 kB of noise: bytes, not images, since nothing is decoded.
"""

import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

from data_sharding.format.shard_reader import ShardReader
from data_sharding.sampling.sample_order import SampleOrder, locate


def tahoe(shards: list[Path]) -> int:
    """Read in the order of training: shuffled, in 64 lanes."""
    readers = [ShardReader(str(path)) for path in shards]
    sizes = np.array([len(reader) for reader in readers])
    ends = np.cumsum(sizes)
    order = SampleOrder(sizes, seed=0, global_batch_size=256, num_lanes=64, num_micro_batches=1)
    num_bytes = 0
    for step in range(order.steps_per_epoch):
        places = (x.tolist() for x in locate(ends, order.global_batch(step).ids))
        for shard, i in zip(*places, strict=True):
            num_bytes += len(bytes(readers[shard].image(i)))
            int(readers[shard].label_bytes(i))
    return num_bytes


def plain_webdataset(shards: list[Path]) -> int:
    """Read as they lie in the shards, without a shuffle buffer."""
    dataset = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    return sum(len(sample["jpg"]) + 0 * int(sample["cls"]) for sample in dataset)


def plain_tarfile(shards: list[Path]) -> int:
    """Read as they lie in the shards, members not grouped into samples."""
    num_bytes = 0
    for path in shards:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                num_bytes += len(file.read()) if file else 0
    return num_bytes


METHODS: dict[str, Callable[[list[Path]], int]] = {
    "tahoe (shuffled, 64 lanes)": tahoe,
    "webdataset (in shard order)": plain_webdataset,
    "tarfile (members, not samples)": plain_tarfile,
}


def make_shards(directory: Path, num_samples: int = 20_000, num_bytes: int = 20_000) -> None:
    rng = np.random.default_rng(0)
    for number in range(4):
        with webdataset.TarWriter(str(directory / f"shard-{number:06d}.tar")) as tar:
            for i in range(number, num_samples, 4):
                tar.write({"__key__": f"{i:08d}", "jpg": rng.bytes(num_bytes), "cls": str(i % 10)})


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(arguments[0] if arguments else scratch)
        if not arguments:
            make_shards(directory)
        rounds = int(arguments[1]) if len(arguments) > 1 else 5
        shards = sorted(directory.glob("*.tar"))
        num_samples = sum(len(ShardReader(str(path))) for path in shards)
        rates: dict[str, list[float]] = {name: [] for name in METHODS}
        for number in range(rounds):
            names = list(METHODS)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start_s = time.perf_counter()
                METHODS[name](shards)
                rates[name].append(num_samples / (time.perf_counter() - start_s))
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{num_samples:,} samples in {len(shards)} shards, {rounds} interleaved rounds")
    ours = rates["tahoe (shuffled, 64 lanes)"]
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(ours, found, strict=True))
        print(f"{name:32}{statistics.median(found):12,.0f} samples/s   tahoe is {ratio:.2f} x")


if __name__ == "__main__":
    main(sys.argv[1:])
