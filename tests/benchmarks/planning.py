"""Measure what a rank does before its first sample: read the manifest, plan, find where to go on.

    python tests/benchmarks/planning.py [ROUNDS]

The data set is one of 1,000,000 shards and 10,000,000,000 samples for 4,096 ranks; there are no
tars, since planning needs none. Every round is a process of its own that plans for one rank in the
middle of an epoch; the medians of its stages are printed. Imports are not counted, and the manifest
is in the page cache. Then a resume in the middle of an epoch is compared with one at its start.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest, write_manifest
from data_sharding.format.shard_table import ShardTable
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.sample_order import SampleOrder
from orchestrator.config.parse import parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.run.plan import data_fingerprint, make_plan
from orchestrator.training.inputs.datasets import make_order

NUM_RANKS = 4096
SAMPLES_PER_SHARD = 10_000
SPLITS = ("train", "val")


class Stage(NamedTuple):
    """What has been done, and what that took since the beginning; the memory is the most so far."""

    name: str
    seconds: float
    megabytes: float


# Patterns in two stores: the names of the shards are whole URLs then.
URLS = tuple(f"s3://{bucket}/a/prefix/of/some/length/*.tar" for bucket in ("one", "another"))


def make_set(url: str, num_shards: int, *, in_stores: bool = False) -> Config:
    """Write manifests of a data set without tars; return a config that trains on it.

    Args:
        in_stores: let the shards be in two stores, with sampled digests; only manifests are at the
            URL.
    """
    rng = np.random.default_rng(0)
    where = Location(None, URLS, URLS, manifest=url) if in_stores else Location(url)
    for split, num in zip(SPLITS, (num_shards, max(num_shards // 100, 1)), strict=True):
        directory = URLS[0].rpartition("*")[0] if in_stores else ""
        names = np.array([f"{directory}shard-{i:07d}.tar" for i in range(num)], dtype=np.bytes_)
        num_samples = SAMPLES_PER_SHARD + np.arange(num) % 2 * 20 - 10 * (num > 1)
        shards = ShardTable(
            names.view(np.uint8).reshape(num, -1),
            num_samples,
            num_samples * 100_000,
            rng.integers(0, 256, (num, 32), dtype=np.uint8),
            kind="sampled" if in_stores else "whole",
        )
        classes = tuple(f"class {i}" for i in range(1000))
        write_manifest(where, split, Manifest(classes, shards, {}))
    urls = f"[{','.join(URLS)}]"
    place = [f"data.train={urls}", f"data.val={urls}", f"data.manifest={url}"]
    (composed,) = compose(
        [
            "data=shards",
            *(place if in_stores else [f"data.url={url}"]),
            f"data.num_lanes={NUM_RANKS}",
            f"recipe.num_micro_batches={NUM_RANKS}",
            f"recipe.global_batch_size={32 * NUM_RANKS}",
            "model=timm/resnet18",
        ]
    )
    return composed.config


def plan_in_a_process(config: Config, num_ranks: int = NUM_RANKS) -> list[Stage]:
    """Plan as a rank does; return its stages."""
    done = subprocess.run(
        [sys.executable, __file__, "--rank", str(num_ranks)],
        input=json.dumps(to_dict(config)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Stage(*stage) for stage in json.loads(done.stdout)]


def _plan(config: Config, num_ranks: int) -> list[Stage]:
    Path("/proc/self/clear_refs").write_text("5")  # forget how much memory the imports took
    start_mb, start_s, stages = _most_mb(), time.perf_counter(), []

    def done(name: str) -> None:
        stages.append(Stage(name, time.perf_counter() - start_s, _most_mb() - start_mb))

    train, val = (read_manifest(config.data.location, split) for split in SPLITS)
    done("read_manifest")
    data_fingerprint(train, val)
    done("fingerprint")
    plan = make_plan(config, num_ranks, train, val)
    order = make_order(config, train, plan)
    done("make_plan, Order")
    own = plan.micro_batches_of(num_ranks // 2)
    shards = SplitReader("train", train, None)  # type: ignore[arg-type]  # nothing is opened
    for name, epochs in ("first step", 0.0), ("one in mid-epoch", 1.5), ("one far away", 1e6 + 0.3):
        step = int(plan.steps_per_epoch * epochs)
        ids = np.concatenate([order.micro_batch(step, micro).ids for micro in own])
        done(name)
        [train.shards[number] for number in shards.shards_of(ids).tolist()]
        done("its shards")
    return stages


def _most_mb() -> float:
    """Return the most memory that this process has used, in MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def resume_s(manifest: Manifest, share: float) -> float:
    """Return the seconds that the first micro-batch takes after so much of an epoch."""
    order = SampleOrder(manifest.shards.num_samples, 0, 1024, 64, 8)
    step = int(order.steps_per_epoch * (3 + share))
    start_s = time.perf_counter()
    order.micro_batch(step, 0)
    return time.perf_counter() - start_s


def main(rounds: int) -> None:
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as url:
        config = make_set(url, 1_000_000)
        runs = [plan_in_a_process(config) for _ in range(rounds)]
        num_samples = read_manifest(url, "train").num_samples
    print(f"1,000,000 shards, {num_samples:,} samples, {NUM_RANKS:,} ranks, {rounds} processes")
    print(f"{'after':20}{'seconds':>10}{'MB at most':>12}")
    for stages in zip(*runs, strict=True):
        seconds = statistics.median(stage.seconds for stage in stages)
        megabytes = statistics.median(stage.megabytes for stage in stages)
        print(f"{stages[0].name:20}{seconds:10.3f}{megabytes:12.1f}")
    with tempfile.TemporaryDirectory() as url:
        make_set(url, 10_000)
        manifest = read_manifest(url, "train")
    found = [(resume_s(manifest, 0), resume_s(manifest, 0.5)) for _ in range(20 * rounds)]
    start, middle = (statistics.median(column) * 1e3 for column in zip(*found, strict=True))
    print(
        f"first micro-batch of 10,000 shards: {start:.2f} ms at the start of an epoch, "
        f"{middle:.2f} ms in its middle: {middle / start:.2f} x"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(_plan(parse(json.load(sys.stdin)), int(sys.argv[2]))))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 5)
