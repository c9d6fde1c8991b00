"""The optimizer of a recipe: timm's or our own, by name; biases may have their own rate."""

import difflib
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Optimizer
from orchestrator.training.optim.caffe_sgd import CaffeSGD
from orchestrator.training.optim.diagonal_lm import DiagonalLM

# Not timm's.
_REGISTRY: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "caffe_sgd": CaffeSGD,
    "sdlm": DiagonalLM,
}


def make_optimizer(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of a network's parameters.

    Raises:
        ConfigError: its name or options are not timm's, or do not go together.
    """
    if optimizer.bias_lr_scale != 1 and optimizer.layer_decay is not None:
        raise ConfigError(
            f"recipe.optimizer: bias_lr_scale={optimizer.bias_lr_scale} and layer_decay="
            f"{optimizer.layer_decay} both say what a bias's rate is. Leave one out."
        )
    if optimizer.name in _REGISTRY:
        return _own(network, optimizer)
    if optimizer.name not in list_optimizers():
        known = [*_REGISTRY, *(str(name) for name in list_optimizers())]
        near = difflib.get_close_matches(optimizer.name, known) or ["sgd", "adamw"]
        raise ConfigError(
            f"recipe.optimizer.name={optimizer.name} is no optimizer of timm. Near names: "
            f"{', '.join(near)}. All: python -c 'import timm; print(timm.optim.list_optimizers())'"
        )
    try:
        return create_optimizer_v2(
            network if optimizer.bias_lr_scale == 1 else _groups(network, optimizer),
            opt=optimizer.name,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            filter_bias_and_bn=not optimizer.decay_norm_and_bias,
            layer_decay=optimizer.layer_decay,
            **optimizer.kwargs,
        )
    except TypeError as error:
        raise _option_error(optimizer, error) from error


def _own(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    try:
        return _REGISTRY[optimizer.name](
            _groups(network, optimizer),
            lr=optimizer.lr,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            **optimizer.kwargs,
        )
    except TypeError as error:
        raise _option_error(optimizer, error) from error


def _groups(network: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return weights, norms and biases apart; timm's schedules multiply a rate by `lr_scale`."""
    rest = 0.0 if not optimizer.decay_norm_and_bias else optimizer.weight_decay
    kinds: dict[str, dict[str, Any]] = {
        "weight": {"params": [], "weight_decay": optimizer.weight_decay},
        "norm": {"params": [], "weight_decay": rest},
        "bias": {"params": [], "weight_decay": rest, "lr_scale": optimizer.bias_lr_scale},
    }
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2] == "bias"
            kind = "bias" if is_bias else "norm" if parameter.ndim <= 1 else "weight"
            kinds[kind]["params"].append(parameter)
    return [group for group in kinds.values() if group["params"]]


def _option_error(optimizer: Optimizer, error: TypeError) -> ConfigError:
    return ConfigError(
        f"recipe.optimizer.kwargs={optimizer.kwargs} do not fit {optimizer.name}: {error}"
    )
