"""The ranks of `tahoe doctor --on-nodes`: each measures its node, and rank 0 collects the results.

    python -m orchestrator.torch_workers.node_probe DIRECTORY

It is started as `orchestrator.training.worker` is and trains nothing. DIRECTORY holds config.yaml;
rank 0 writes report.json there, a list of the ranks' results.
"""

import json
import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.format.shard_table import ShardTable
from data_sharding.io import filesystem
from data_sharding.io.atomic_file import write_atomic
from data_sharding.storage.cache import cache_directory, free_bytes
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir, RunError, hold
from orchestrator.training.distributed.world import World, init_world

_MESSAGE_BYTES = 64 << 20  # about the gradients of a ResNet-34, in one piece
_NUM_ROUNDS = 5
_NUM_SMALL = 100
_READ_BYTES, _READ_S = 256 << 20, 10.0
_BLOCK_BYTES = 8 << 20
_VISIBLE_WITHIN_S = 30.0  # NFS may cache the absence of a file for so long


def main(arguments: Sequence[str]) -> int:
    run = RunDir(Path(arguments[0]))
    config = parse(run.read_config())
    try:
        _probe(run, config)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)  # doctor shows it, without a traceback
        return 1
    return 0


def _probe(run: RunDir, config: Config) -> None:
    with init_world(config.runtime) as world:
        result = {
            "host": socket.gethostname(),
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
            "num_gpus": torch.cuda.device_count(),
            "gpu": torch.cuda.get_device_name(world.device) if torch.cuda.is_available() else None,
            "unseen": _invisible_ranks(run, world),
            "unlocked": _lock_error(run, world),
            "clock": _clock_offset(world),
            "all_reduce": _all_reduce(world),
            "read": _read(config, world) if world.local_rank == 0 else None,
            "cache": _cache(config),
        }
        results = world.gather_objects(result)
        if world.is_main:
            write_atomic(run.path / "report.json", json.dumps(results, indent=2))


def _invisible_ranks(run: RunDir, world: World) -> list[int]:
    """Return the ranks whose files do not appear here: they have another directory."""
    directory = run.path / "shared"
    directory.mkdir(exist_ok=True)
    (directory / str(world.rank)).write_text(f"rank {world.rank}")
    world.barrier()
    deadline_s = time.monotonic() + _VISIBLE_WITHIN_S
    unseen = list(range(world.size))
    while unseen and time.monotonic() < deadline_s:
        unseen = [rank for rank in unseen if not _sees_file(directory, rank)]
        time.sleep(0.05)
    world.barrier()
    return unseen


def _sees_file(directory: Path, rank: int) -> bool:
    try:
        return (directory / str(rank)).read_text() == f"rank {rank}"
    except FileNotFoundError:
        return False


def _lock_error(run: RunDir, world: World) -> str | None:
    """Describe why the locks of this directory do not work, if they do not."""
    problem = None
    with run.lock_file.open("a") as file:
        for is_my_turn in (world.is_main, not world.is_main):  # to take what rank 0 holds
            try:
                if is_my_turn and hold(file) != world.is_main:
                    problem = f"two ranks at a time locked {run.path} (Lustre: mount with -o flock)"
            except RunError as error:
                problem = str(error)
            world.barrier()
    return problem


def _clock_offset(world: World) -> dict[str, float]:
    """Measure how far this clock is ahead of rank 0's, and the error of that; seconds.

    As in NTP the fastest of several exchanges counts, its response taken as half-way (RFC 5905).
    """
    best = {"ahead_s": 0.0, "within_s": 0.0 if world.is_main else float("inf")}
    sent, received = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for rank in range(1, world.size):
        for _ in range(_NUM_ROUNDS * 2):
            if world.is_main:
                dist.recv(received, src=rank, group=world.control)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), rank, world.control)
            elif rank == world.rank:
                sent[0] = start_s = time.time()
                dist.send(sent, 0, world.control)
                dist.recv(received, src=0, group=world.control)
                within_s = (time.time() - start_s) / 2
                if within_s < best["within_s"]:
                    ahead_s = start_s + within_s - received.item()
                    best = {"ahead_s": ahead_s, "within_s": within_s}
    return best


def _all_reduce(world: World) -> dict[str, float]:
    """Measure the bandwidth and the latency of a sum over all ranks.

    The bandwidth is that of a link, 2 (n - 1) / n bytes for each byte of the message, so that it
    can be compared with the hardware's: github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md.
    """
    message = torch.zeros(_MESSAGE_BYTES // 4, device=world.device)
    carried = 2 * (world.size - 1) / world.size * _MESSAGE_BYTES
    small = torch.zeros(1, device=world.device)

    def small_sums() -> None:
        for _ in range(_NUM_SMALL):
            dist.all_reduce(small)

    return {
        "bytes_per_s": carried / _median_s(world, lambda: dist.all_reduce(message)),
        "latency_s": _median_s(world, small_sums) / _NUM_SMALL,
    }


def _median_s(world: World, action: Callable[[], object]) -> float:
    def timed() -> float:
        world.barrier()  # which ranks leave at different times: short actions are repeated
        start_s = time.perf_counter()
        action()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        return time.perf_counter() - start_s

    timed()  # the first sets up connections
    return statistics.median(timed() for _ in range(_NUM_ROUNDS))


def _read(config: Config, world: World) -> dict[str, Any]:
    """Read training shards for a while; return the volume and the seconds, or the error."""
    try:
        location = config.data.train_locations[0]
        manifest = read_manifest(location, "train")
        num_read, start_s = 0, time.monotonic()
        for block in _blocks(location, manifest.shards, world):
            num_read += len(block)
            if num_read >= _READ_BYTES or time.monotonic() - start_s > _READ_S:
                break
    except Exception as error:  # every store raises its own kinds
        return {"error": f"{type(error).__name__}: {error}"}
    num_images = num_read * manifest.num_samples / manifest.num_bytes
    seconds = time.monotonic() - start_s
    return {"num_bytes": num_read, "num_images": num_images, "seconds": seconds}


def _blocks(location: Location, shards: ShardTable, world: World) -> Iterator[bytes]:
    """Yield the bytes of shards; no two nodes read the same one."""
    num_local = int(os.environ["LOCAL_WORLD_SIZE"])
    node, num_nodes = world.rank // num_local, world.size // num_local
    for i in range(node, len(shards), num_nodes):
        fs, path = filesystem.store_of(location.shard_url("train", shards[i].name))
        with fs.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block


def _cache(config: Config) -> dict[str, Any] | None:
    """Return the free space of the shard cache, or its error; None without a cache."""
    if config.data.cache == "none" or config.data.is_train_local:
        return None
    try:
        return {"free_bytes": free_bytes(cache_directory(config.data.cache.dir))}
    except DataError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
