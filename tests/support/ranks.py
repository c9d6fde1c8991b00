"""A function run on several ranks, in processes that meet over gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import init_world


def run_on_ranks(function: Callable[..., None], num_ranks: int, config: Config, *args: Any) -> None:
    """Call `function(world, config, *args)` on each rank; fail as the first that fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The first test decides what its fork server imports once for all ranks, beside torch.
    preloaded = ["data_sharding.loading.loader", function.__module__]
    multiprocessing.get_context("forkserver").set_forkserver_preload(preloaded)
    arguments = num_ranks, port, function, config, args
    torch.multiprocessing.start_processes(_on_rank, arguments, num_ranks, start_method="forkserver")


def _on_rank(
    rank: int,
    num_ranks: int,
    port: int,
    function: Callable[..., None],
    config: Config,
    args: tuple[Any, ...],
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}
    names["LOCAL_WORLD_SIZE"] = num_ranks
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        os.environ[name] = str(value)
    with init_world(config.runtime) as world:
        function(world, config, *args)
