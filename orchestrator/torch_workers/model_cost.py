"""What a run's network costs, told to `checks.model_cost` before anything is trained.

All that a config names is made on the way, so that what is misspelt or does not fit is found then.
Nothing is allocated, so it does on a login node.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.parse import parse
from orchestrator.config.schema import Config
from orchestrator.torch_workers.entry import json_entry_point
from orchestrator.training.inputs.datasets import distortion_of
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.task.losses import make_objective
from orchestrator.training.task.model import build_model, check_step, model_cost
from orchestrator.training.task.warm_start import load_initial_weights


def cost(
    config: Mapping[str, Any], num_classes: int, init_file: str | None = None
) -> Mapping[str, float]:
    """Return what `task.model.model_cost` counts.

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
    network = build_model(config, num_classes)
    make_optimizer(network, config.recipe.optimizer)
    if init_file is not None:
        load_initial_weights(network, Path(init_file), num_classes, config.data.in_channels)
    cost = model_cost(network, config)
    check_step(network, config)
    return cost


if __name__ == "__main__":
    sys.exit(json_entry_point(cost))
