"""Functions that need torch, called by the launcher through `launch.torch_subprocess`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch

from models import external
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.run.plan import Plan
from orchestrator.training.inputs.datasets import make_augmentation
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.optim.lr_schedule import make_lr_schedule
from orchestrator.training.task.losses import make_objective
from orchestrator.training.task.model import build_model, check_step, model_cost
from orchestrator.training.task.warm_start import load_initial_weights


def build_and_count(
    config: Mapping[str, Any], num_classes: int, init_file: str | None = None
) -> Mapping[str, float]:
    """Return the counts of `task.model.model_cost`, before anything is trained.

    All that the config names is built on the way, so that what is misspelt or does not fit is found
    then. Where possible nothing is allocated, so that a login node can do it.

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


def learning_rates(
    configs: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
    steps: Sequence[int],
) -> dict[str, list[float]]:
    """Compute the rates of each of several configs at the same steps, counted from 0."""
    rates: dict[str, list[float]] = {}
    for name, values in configs.items():
        recipe = parse(values).recipe
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=recipe.optimizer.lr)
        schedule = make_lr_schedule(optimizer, recipe, Plan(**plans[name]))
        rates[name] = []
        for step in steps:
            schedule.step_update(step)
            rates[name].append(float(optimizer.param_groups[0]["lr"]))
    return rates


def fetch_pretrained(name: str, file: str) -> Mapping[str, str]:
    """Write the weights of timm/NAME as a safetensors file."""
    bare_name = name.removeprefix("timm/")
    if not external.is_known(name) or not timm.models.is_model_pretrained(bare_name):
        raise ConfigError(
            f"init_from={name}: timm has no such pretrained weights",
            value=name,
            hint="List them: python -c 'import timm; print(timm.list_pretrained(\"*resnet*\"))'",
        )
    try:
        network = timm.create_model(bare_name, pretrained=True)
    except Exception as error:  # of the hub, of requests, of the network
        raise ConfigError(
            f"init_from={name}: its weights cannot be fetched: {type(error).__name__}: {error}",
            value=name,
            hint="Run `tahoe train|submit`, which keeps them in the run directory, where there is "
            "a network; or give a safetensors file.",
        ) from error
    safetensors.torch.save_model(network, file)
    return {}
