"""Tabulate what grows with ranks and shards, by playing ranks and by the product's own arithmetic.

    python tests/benchmarks/scale.py

Measured: a rank's start, twice in processes of their own, from a web server of this machine that
counts its requests: the first rank of a node, and another one that finds what the first has left.
Computed: what a node reads and what rank 0 writes, from the plan, the order, and the assumptions
that are printed. The data sets are those of planning.py: manifests without tars.
"""

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import models
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.io.download import DownloadSettings
from data_sharding.loading.split_reader import SplitReader
from orchestrator.checkpoint.safetensors_io import unique_tensors
from orchestrator.config.schema import Config
from orchestrator.run.node_times import RankTimes, node_times, to_json
from orchestrator.run.plan import make_plan
from orchestrator.training.inputs.datasets import make_order
from tests.benchmarks.planning import make_set, plan_in_a_process
from tests.benchmarks.rounds import print_machine

RANKS, SHARDS = (1, 64, 4096), (10, 1_000, 10_000, 1_000_000)
# Assumptions.
GPUS_PER_NODE, IMAGES_PER_RANK, IMAGES_PER_S_PER_GPU = 8, 16, 1000
LINK_BYTES_PER_S, STORE_BYTES_PER_S = 1e9, 10e9  # of a node, and of the store to all nodes
MODELS, METRICS_PER_LOG = ("timm/resnet50", "timm/vit_large_patch16_224"), 15
_MAX_STEPS = 64  # of an epoch, at which a node's shards are looked up


class Served:
    """The requests that a server has answered since the last call of `pop`."""

    def __init__(self, directory: str) -> None:
        self._directory, self._paths, self._lock = directory, list[str](), threading.Lock()

    def add(self, path: str) -> None:
        with self._lock:
            self._paths.append(path)

    def pop(self) -> tuple[int, int]:
        """Return the requests, and the bytes of the files: each counts once.

        fsspec asks a web server whether a file exists by a GET whose body it drops.
        """
        with self._lock:
            paths, self._paths = self._paths, []
        files = [Path(self._directory, path.lstrip("/")) for path in set(paths)]
        return len(paths), sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def serve(directory: str) -> Iterator[tuple[str, Served]]:
    """Serve a directory and count; yield its URL and the counts."""
    served = Served(directory)

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            served.add(self.path)
            return super().send_head()

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with suppress(ConnectionError):  # a client that only asked whether it exists
                super().copyfile(source, outputfile)

        def log_message(self, *args: object) -> None:
            pass

    handler = partial(Handler, directory=directory)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", served
        finally:
            server.shutdown()


class Start(NamedTuple):
    """A rank's way to the shards of its first step."""

    seconds: float
    megabytes: float
    requests: int
    bytes: int


def play(config: Config, num_ranks: int, served: Served, temporary: str) -> Start:
    """Start a rank on a node with these temporary files."""
    served.pop()
    os.environ["TMPDIR"] = temporary
    try:
        stages = plan_in_a_process(config, num_ranks)
    finally:
        del os.environ["TMPDIR"]
    first = next(stage for stage in stages if stage.name == "its shards")
    return Start(first.seconds, first.megabytes, *served.pop())


def sized(config: Config, num_ranks: int) -> Config:
    """Return a config with a micro-batch and a lane a rank."""
    return config.replace(
        {
            "data.num_lanes": num_ranks,
            "recipe.num_micro_batches": num_ranks,
            "recipe.global_batch_size": IMAGES_PER_RANK * num_ranks,
        }
    )


def shards_of_a_node(config: Config, num_ranks: int, train: Manifest, val: Manifest) -> int:
    """Return the shards that the first node reads from in an epoch, at least."""
    plan = make_plan(config, num_ranks, train, val)
    order = make_order(config, train, plan)
    reader = SplitReader("train", train, None)  # type: ignore[arg-type]  # nothing is opened
    own = range(min(GPUS_PER_NODE, num_ranks))
    micros = [micro for rank in own for micro in plan.micro_batches_of(rank)]
    last = plan.steps_per_epoch - 1
    steps = np.unique(np.linspace(0, last, min(_MAX_STEPS, last + 1)).astype(int)).tolist()
    ids = np.concatenate([order.micro_batch(s, m).ids for s in steps for m in micros])
    num_nodes = max(1, num_ranks // GPUS_PER_NODE)
    return max(len(np.unique(reader.shards_of(ids))), len(train.shards) // num_nodes)


def print_starts() -> None:
    """Print a rank's start and a node's reading for every number of ranks and shards."""
    heads = f"{'a node at first':>38}{'another rank':>18}{'all ranks':>15}{'epoch of a node':>20}"
    units = f"{'ranks':>7}{'shards':>10}{'s':>6}{'MB RAM':>7}{'req.':>5}{'MB':>8}"
    print(
        heads,
        f"{units}{'s':>7}{'req.':>5}{'MB':>6}{'GB':>7}{'s':>8}{'GB':>11}{'/ used':>9}",
        sep="\n",
    )
    for num_shards in SHARDS:
        with tempfile.TemporaryDirectory() as directory, serve(directory) as (url, served):
            config = make_set(directory, num_shards)
            train, val = (read_manifest(directory, split) for split in ("train", "val"))
            config = config.replace({"data.url": url})
            for num_ranks in RANKS:
                print_row(sized(config, num_ranks), num_ranks, served, train, val)


def print_row(
    config: Config, num_ranks: int, served: Served, train: Manifest, val: Manifest
) -> None:
    """Play the first two ranks of a node; print what they and all others take."""
    with tempfile.TemporaryDirectory() as temporary:
        first, other = (play(config, num_ranks, served, temporary) for _ in range(2))
    per_node = min(GPUS_PER_NODE, num_ranks)
    num_nodes = num_ranks // per_node
    all_bytes = num_nodes * (first.bytes + (per_node - 1) * other.bytes)
    read = shards_of_a_node(config, num_ranks, train, val) * train.num_bytes / len(train.shards)
    print(
        f"{num_ranks:7,}{len(train.shards):10,}{first.seconds:6.2f}{first.megabytes:7.0f}"
        f"{first.requests:5}{first.bytes / 1e6:8.2f}{other.seconds:7.2f}{other.requests:5}"
        f"{other.bytes / 1e6:6.2f}{all_bytes / 1e9:7.2f}{all_bytes / STORE_BYTES_PER_S:8.2f}"
        f"{read / 1e9:11,.0f}{read * num_nodes / train.num_bytes:9.1f}",
        flush=True,
    )


def print_reading(sample_bytes: float) -> None:
    """Print what a node asks of the store while it trains, whatever the ranks and shards."""
    images_per_s = GPUS_PER_NODE * IMAGES_PER_S_PER_GPU
    bytes_per_s, chunk = images_per_s * sample_bytes, DownloadSettings().chunk_bytes
    num_nodes = RANKS[-1] // GPUS_PER_NODE
    print(
        f"a node reads {bytes_per_s / 1e6:,.0f} MB/s: {bytes_per_s / chunk:,.0f} requests/s of "
        f"{chunk / 1e6:.1f} MB with a cache,\n{images_per_s:,} at most without; "
        f"{num_nodes} nodes read {bytes_per_s * num_nodes / 1e9:,.0f} GB/s"
    )


def print_logging(config: Config) -> None:
    """Print what a logged step costs, by ranks."""
    logs_per_s = IMAGES_PER_S_PER_GPU / IMAGES_PER_RANK / config.logging.every_steps
    print(f"MLflow: {METRICS_PER_LOG * logs_per_s:.0f} points/s, whatever the ranks")
    for num_ranks in RANKS[1:]:  # one node has no times to compare
        nodes = [f"node{rank // GPUS_PER_NODE:04}" for rank in range(num_ranks)]
        times = [RankTimes(*(0.0123456 for _ in RankTimes._fields))] * num_ranks
        line = json.dumps(to_json(node_times(nodes, times, 10, 1.0), step=1, attempt=1))
        table = num_ranks * (len(RankTimes._fields) + 1) * 8
        print(
            f"{num_ranks:7,} ranks: {table / 1e3:.1f} kB reduced a logged step; "
            f"node times {len(line) / 1e3:.1f} kB, {len(line) * logs_per_s * 86.4e-6:.2f} GB a day"
        )


def print_saving(config: Config) -> None:
    """Print the bytes of a checkpoint, all of which pass through rank 0."""
    interval_s = config.checkpoint.every_steps * IMAGES_PER_RANK / IMAGES_PER_S_PER_GPU  # type: ignore[operator]
    for name in MODELS:
        with torch.device("meta"):
            model = models.build(name, num_classes=1000, in_channels=3)
        weights = sum(tensor.nbytes for tensor in unique_tensors(model)[0].values())
        slots = sum(parameter.nbytes for parameter in model.parameters())
        for kind, num_slots, copies in ("SGD", 1, 1), ("AdamW, EMA", 2, 2):
            whole, sliced = copies * weights + num_slots * slots, num_slots * slots
            print(
                f"{name}, {kind}: {whole / 1e9:.2f} GB, {whole / LINK_BYTES_PER_S:.1f} s of every "
                f"{interval_s:.0f} s;\n    sent to rank 0: ddp 0, zero1 {sliced / 1e9:.2f}, "
                f"fsdp2 {whole / 1e9:.2f} GB"
            )


def main() -> None:
    print_machine()
    print(
        f"assumed: {GPUS_PER_NODE} GPUs a node, {IMAGES_PER_RANK} images a GPU and step, "
        f"{IMAGES_PER_S_PER_GPU} images/s a GPU,\n{LINK_BYTES_PER_S / 1e9:g} GB/s a node, "
        f"{STORE_BYTES_PER_S / 1e9:g} GB/s of the store, {METRICS_PER_LOG} metrics a logged step"
    )
    print_starts()
    with tempfile.TemporaryDirectory() as directory:
        config = make_set(directory, 10)
        train = read_manifest(directory, "train")
    print_reading(train.num_bytes / train.num_samples)
    print_logging(config)
    print_saving(config)


if __name__ == "__main__":
    main()
