"""The network of a run, and what it costs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
from orchestrator.config import ConfigError
from orchestrator.schema import Config


def build_network(config: Config, num_classes: int) -> nn.Module:
    """Build the configured network for the data set's classes, on the CPU.

    Raises:
        ConfigError: there is no such network, or it does not take these options or images.
    """
    try:
        return models.build(
            config.model.name,
            num_classes=num_classes,
            in_channels=config.data.channels,
            **config.model.options,
        )
    except ValueError as error:
        raise ConfigError(f"model={config.model.name}: {error}") from error


def count_cost(network: nn.Module, config: Config) -> dict[str, float]:
    """Return trainable parameters, and multiply-adds of one image's forward pass in 10**9.

    Multiply-adds are those of convolutions and matrix products, as papers count them; of a network
    that is trained in stages, those of the last.

    Raises:
        ConfigError: the network does not take images of the configured size.
    """
    size, was_training = config.data.image_size, network.training
    image = torch.zeros(1, config.data.channels, size, size)
    network.eval()
    with _in_last_stage(network, config), FlopCounterMode(display=False) as counter:
        # Not under no_grad: the counter's hooks fail on parameters that a module is called with.
        try:
            network(image)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"model={config.model.name} does not take images of data.image_size={size} and "
                f"data.channels={config.data.channels}: {str(error).splitlines()[0]}"
            ) from error
    network.train(was_training)
    num_params = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return {"model/num_params": num_params, "model/gmacs": counter.get_total_flops() / 2e9}


@contextmanager
def _in_last_stage(network: Any, config: Config) -> Iterator[None]:
    stages = config.recipe.stages
    if not stages or not hasattr(network, "stage"):
        yield
        return
    before, network.stage = network.stage, stages[-1].stage
    yield
    network.stage = before
