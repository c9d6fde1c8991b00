"""Measure reading from S3: the rate and cost of fetching, and what training waits for.

    python tests/benchmarks/remote.py [ROUNDS]

The store is moto's server on this machine, 2 ms away, so the rates are the client's and moto's
together, on shared cores; the client's own cost is its CPU time. Then training is played: steps
that need half of the measured rate, read from the node's cache while a prefetcher fills it, without
faults and with 1 % of the requests failing. Every round begins with an empty cache. At last batches
are read by range while 1 % of the requests stall, each for 2 to 5 seconds: with hedged requests and
without.
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

from data_sharding.format.location import Location
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io.download import ByteRange, DownloadSettings, fetch_ranges
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.fetch_shard import fetch_shard
from data_sharding.storage.prefetch import prefetching
from data_sharding.storage.shard_store import open_store

NUM_SHARDS, NUM_SAMPLES, NUM_BYTES, BATCH = 96, 160, 200_000, 32
NUM_WARM, NUM_BATCHES = 4, 100
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
            fetch_shard(s3.url("set", shard.name), shard, SampleRule(), file, TRANSFER)
    megabytes = sum(shard.num_bytes for shard in shards) / 1e6
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    return Fetching(megabytes / seconds, 1e3 * cpu_s / megabytes)


def train(s3: S3, shards: Shards, directory: Path, mb_per_s: float) -> Training:
    """Play an epoch of steps that need data at this rate; a quarter of the shards have room."""
    max_gb = NUM_SHARDS // 4 * shards[0].num_bytes / 1e9
    settings = CacheSettings(dir=str(directory), max_gb=max_gb, request_timeout_s=10)
    store = open_store(Location(train=(s3.url("set"),)), "train", settings, SampleRule())
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


class Batches(NamedTuple):
    """Seconds that batches took, and the requests made for each one that was needed."""

    median_s: float
    percentile_99_s: float
    total_s: float
    requests: float


def read_batches(s3: S3, shards: Shards, max_hedged_fraction: float) -> Batches:
    """Read batches of samples by range, each sample from another shard, while 1 % stall."""
    settings = DownloadSettings(max_hedged_fraction=max_hedged_fraction)
    seconds, rng = [], np.random.default_rng(0)
    for number in range(NUM_WARM + NUM_BATCHES):
        if number == NUM_WARM:  # the same requests stall in each round
            s3.fail(latency_s=LATENCY_S, stalls=0.01, stall_s=(2, 5))
        chosen = [shards[i] for i in rng.integers(0, len(shards), BATCH)]
        starts = [int(start) for start in rng.integers(0, shards[0].num_bytes - NUM_BYTES, BATCH)]
        ranges = [
            ByteRange(s3.url("set", shard.name), start, start + NUM_BYTES)
            for shard, start in zip(chosen, starts, strict=True)
        ]
        start_s = time.perf_counter()
        fetch_ranges(ranges, settings, lambda index, data: None)
        seconds.append(time.perf_counter() - start_s)
    counted = seconds[NUM_WARM:]
    median_s, late_s = np.percentile(counted, (50, 99)).tolist()
    num_requests = sum(request["method"] == "GET" for request in s3.requests())
    s3.fail()
    return Batches(median_s, late_s, sum(counted), num_requests / (NUM_BATCHES * BATCH))


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
        for name, fraction in ("without", 0.0), ("with", 0.03):
            read = [read_batches(s3, shards, fraction) for _ in range(rounds)]
            median_s, late_s, total_s, requests = map(statistics.median, zip(*read, strict=True))
            print(
                f"{NUM_BATCHES} batches of {BATCH} samples by range, 1 % stalls, {name} hedging: "
                f"median {median_s:.2f} s, 99th percentile {late_s:.2f} s, all {total_s:.0f} s; "
                f"{requests:.3f} requests for each that is needed"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
