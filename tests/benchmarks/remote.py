"""Measure reading from S3: the rate and cost of fetching, and what training waits for.

    python tests/benchmarks/remote.py [ROUNDS]

The store is moto's server on this machine, 2 ms away, so the rates are the client's and moto's
together, on shared cores; the client's own cost is its CPU time. Then training is played: steps
that need half of the measured rate, read from the node's cache while a prefetcher fills it, without
faults and with 1 % of the requests failing. Every round begins with an empty cache.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from s3_server import S3, Shards, make_shards, serve

from data_sharding.format.sample_rule import SampleRule
from data_sharding.io.download import DownloadSettings
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.fetch_shard import fetch_shard
from data_sharding.storage.prefetch import prefetching
from data_sharding.storage.shard_store import open_store

NUM_SHARDS, NUM_SAMPLES, NUM_BYTES, BATCH = 96, 160, 200_000, 32
LATENCY_S = 0.002
TRANSFER = DownloadSettings(request_timeout_s=10)


class Fetching(NamedTuple):
    """How fast shards came, and what they cost."""

    mb_per_s: float
    cpu_ms_per_mb: float


class Training(NamedTuple):
    """Seconds of waiting for data in an epoch, and its share of the epoch and of its second half.

    The first half begins while the prefetcher is only being started.
    """

    waited_s: float
    share: float
    share_of_second_half: float


def fetch_all(s3: S3, shards: Shards, scratch: Path) -> Fetching:
    """Fetch and verify every shard, one after the other, into a file."""
    start_s, cpu_s = time.perf_counter(), time.process_time()
    for shard in shards:
        with (scratch / "shard.tar").open("w+b", buffering=0) as file:
            fetch_shard(s3.url("set", shard.name), shard, file, TRANSFER)
    megabytes = sum(shard.num_bytes for shard in shards) / 1e6
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    return Fetching(megabytes / seconds, 1e3 * cpu_s / megabytes)


def train(s3: S3, shards: Shards, directory: Path, mb_per_s: float) -> Training:
    """Play an epoch of steps that need data at this rate; a quarter of the shards have room."""
    max_gb = NUM_SHARDS // 4 * shards[0].num_bytes / 1e9
    settings = CacheSettings(dir=str(directory), max_gb=max_gb, request_timeout_s=10)
    store = open_store(s3.url("set"), settings, SampleRule())
    names = [[number] for number in range(len(shards)) for _ in range(NUM_SAMPLES // BATCH)]
    step_s, waits_s = BATCH * NUM_BYTES / 1e6 / mb_per_s, []
    with prefetching(store, shards, names, np.asarray) as advance:
        for batch, (number,) in enumerate(names):
            start_s = time.perf_counter()
            reader = store.open(shards[number])
            waits_s.append(time.perf_counter() - start_s)
            first = batch % (NUM_SAMPLES // BATCH) * BATCH
            num_bytes = sum(len(bytes(reader.image(i))) for i in range(first, first + BATCH))
            store.close_evicted()
            advance()
            assert num_bytes == BATCH * NUM_BYTES
            time.sleep(step_s)
    whole, second = (_share(part, step_s) for part in (waits_s, waits_s[len(waits_s) // 2 :]))
    return Training(sum(waits_s), whole, second)


def _share(waits_s: list[float], step_s: float) -> float:
    return sum(waits_s) / (sum(waits_s) + len(waits_s) * step_s)


def in_empty_directory(measure: Callable[[Path], Training]) -> Training:
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch))


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 3
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with serve() as s3, tempfile.TemporaryDirectory() as scratch:
        shards = make_shards(Path(scratch, "set"), NUM_SHARDS, NUM_SAMPLES, NUM_BYTES)
        s3.put(s3.url("set"), Path(scratch, "set"))
        s3.fail(latency_s=LATENCY_S)
        fetch_all(s3, shards[:1], Path(scratch))  # imports, and the first connection
        fetched = [fetch_all(s3, shards, Path(scratch)) for _ in range(rounds)]
        rate, cost = (statistics.median(column) for column in zip(*fetched, strict=True))
        print(
            f"{NUM_SHARDS} shards of {shards[0].num_bytes / 1e6:.0f} MB, {rounds} rounds, medians"
        )
        print(f"fetching {rate:.0f} MB/s, {cost:.1f} ms of client CPU a MB")
        for name, faults in ("no faults", {}), ("1 % faults", {"errors": 0.005, "cuts": 0.005}):
            s3.fail(latency_s=LATENCY_S, **faults)
            trained = [
                in_empty_directory(lambda path: train(s3, shards, path, rate / 2))
                for _ in range(rounds)
            ]
            waited_s, share, second = map(statistics.median, zip(*trained, strict=True))
            print(
                f"training at {rate / 2:.0f} MB/s, {name}: {waited_s:.1f} s of waiting for data, "
                f"{share:.1%} of the time, {second:.1%} in the second half"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
