"""A config as Hydra composes it, and a world of one rank, for tests that need no run."""

import socket
from collections.abc import Iterator

import pytest
import torch

from orchestrator.config.recipe import Recipe
from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.training.distributed.world import World, init_world


@pytest.fixture(scope="session")
def config() -> Config:
    (composed,) = compose(["data=digits", "tracking=none"])
    return composed.config


@pytest.fixture(scope="session")
def recipe(config: Config) -> Recipe:
    return config.recipe


@pytest.fixture
def world(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    threads = torch.get_num_threads()
    with init_world(config.runtime) as joined:
        yield joined
    torch.set_num_threads(threads)
