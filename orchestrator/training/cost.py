"""What a run's network costs, told to `launch.cost` before anything is trained.

All that a config names is made on the way, so that what is misspelt or does not fit is found then.
Nothing is allocated, so it does on a login node.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.config import parse
from orchestrator.schema import Config
from orchestrator.training.answer import answer
from orchestrator.training.datasets import distortion_of
from orchestrator.training.initialise import initialise
from orchestrator.training.network import build_network, check_step, count_cost
from orchestrator.training.objectives import make_objective
from orchestrator.training.optimizer import make_optimizer


def cost(
    config: Mapping[str, Any], num_classes: int, init_file: str | None = None
) -> Mapping[str, float]:
    """Return what `network.count_cost` counts.

    Args:
        init_file: weights that the network is to begin with, which are tried on it.

    Raises:
        ConfigError: something has no such name, or options that it does not take, or does not fit.
    """
    known = parse(config)
    make_objective(known.recipe)
    distortion_of(known)
    try:
        with torch.device("meta"):
            return _cost_of(known, num_classes, init_file)
    except Exception:  # of a network that wants to see numbers, or indeed of the config
        return _cost_of(known, num_classes, init_file)


def _cost_of(config: Config, num_classes: int, init_file: str | None) -> Mapping[str, float]:
    network = build_network(config, num_classes)
    make_optimizer(network, config.recipe.optimizer)
    if init_file is not None:
        initialise(network, Path(init_file), num_classes, config.data.channels)
    cost = count_cost(network, config)
    check_step(network, config)
    return cost


if __name__ == "__main__":
    sys.exit(answer(cost))
