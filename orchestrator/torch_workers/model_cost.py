"""The cost of a run's network, for `launch.checks.model_cost`, before anything is trained.

All that a config names is built on the way, so that what is misspelt or does not fit is found then.
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
from orchestrator.training.inputs.datasets import make_augmentation
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.task.losses import make_objective
from orchestrator.training.task.model import build_model, check_step, model_cost
from orchestrator.training.task.warm_start import load_initial_weights


def build_and_count(
    config: Mapping[str, Any], num_classes: int, init_file: str | None = None
) -> Mapping[str, float]:
    """Return the counts of `task.model.model_cost`.

    Args:
        init_file: initial weights, which are loaded into the network.
    """
    parsed = parse(config)
    make_objective(parsed.recipe)
    make_augmentation(parsed)
    try:
        with torch.device("meta"):
            return _build_and_count(parsed, num_classes, init_file)
    except Exception:  # the network needs numbers to be built with, or the config is at fault
        return _build_and_count(parsed, num_classes, init_file)


def _build_and_count(
    config: Config, num_classes: int, init_file: str | None
) -> Mapping[str, float]:
    network = build_model(config, num_classes)
    make_optimizer(network, config.recipe.optimizer)
    if init_file is not None:
        load_initial_weights(network, Path(init_file), num_classes, config.data.in_channels)
    cost = model_cost(network, config)
    check_step(network, config)
    return cost


if __name__ == "__main__":
    sys.exit(json_entry_point(build_and_count))
