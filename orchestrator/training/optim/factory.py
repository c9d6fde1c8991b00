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

# Besides timm's.
_REGISTRY: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "caffe_sgd": CaffeSGD,
    "sdlm": DiagonalLM,
}


def make_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Create the optimizer of a model's parameters.

    Raises:
        ConfigError: the name is unknown, or the options do not fit it or each other.
    """
    if optimizer.bias_lr_scale != 1 and optimizer.layer_decay is not None:
        raise ConfigError(
            f"recipe.optimizer: bias_lr_scale={optimizer.bias_lr_scale} and layer_decay="
            f"{optimizer.layer_decay} both set the learning rate of biases",
            value=optimizer.bias_lr_scale,
            hint="Leave one of them out.",
        )
    if optimizer.name in _REGISTRY and optimizer.layer_decay is not None:
        raise ConfigError(
            f"recipe.optimizer.layer_decay={optimizer.layer_decay} is for timm's optimizers; "
            f"{optimizer.name} would train all layers at one rate",
            value=optimizer.layer_decay,
            hint="Set it to null, or choose an optimizer of timm.",
        )
    settings: dict[str, Any] = {
        "lr": optimizer.lr,
        "momentum": optimizer.momentum,
        "weight_decay": optimizer.weight_decay,
    }
    try:
        if optimizer.name in _REGISTRY:
            groups = _param_groups(model, optimizer)
            return _REGISTRY[optimizer.name](groups, **settings, **optimizer.kwargs)
        _check_timm_has(optimizer.name)
        return create_optimizer_v2(
            model if optimizer.bias_lr_scale == 1 else _param_groups(model, optimizer),
            opt=optimizer.name,
            filter_bias_and_bn=not optimizer.decay_norm_and_bias,
            layer_decay=optimizer.layer_decay,
            **settings,
            **optimizer.kwargs,
        )
    except TypeError as error:
        raise ConfigError(
            f"recipe.optimizer.kwargs={optimizer.kwargs} do not fit {optimizer.name}: {error}",
            value=optimizer.kwargs,
        ) from error


def _check_timm_has(name: str) -> None:
    if name in list_optimizers():
        return
    known = [*_REGISTRY, *(str(name) for name in list_optimizers())]
    similar = difflib.get_close_matches(name, known) or ["sgd", "adamw"]
    raise ConfigError(
        f"recipe.optimizer.name={name} is not an optimizer of timm",
        value=name,
        hint=f"Similar names: {', '.join(similar)}. All: "
        "python -c 'import timm; print(timm.optim.list_optimizers())'",
    )


def _param_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Group weights, norms and biases; timm's schedules multiply a rate by `lr_scale`."""
    norm_decay = optimizer.weight_decay if optimizer.decay_norm_and_bias else 0.0
    groups: dict[str, dict[str, Any]] = {
        "weight": {"params": [], "weight_decay": optimizer.weight_decay},
        "norm": {"params": [], "weight_decay": norm_decay},
        "bias": {"params": [], "weight_decay": norm_decay, "lr_scale": optimizer.bias_lr_scale},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2] == "bias"
            kind = "bias" if is_bias else "norm" if parameter.ndim <= 1 else "weight"
            groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
