"""The network of a run, and what it costs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models
from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.training.task.linear_probe import head_name


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Build the configured network for the data set's classes, on the CPU.

    Raises:
        ConfigError: there is no such network, or it does not take these options or images.
    """
    try:
        return models.build(
            config.model.name,
            num_classes=num_classes,
            in_channels=config.data.in_channels,
            **config.model.kwargs,
        )
    except ValueError as error:
        raise ConfigError(f"model={config.model.name}: {error}") from error


def model_cost(network: nn.Module, config: Config) -> dict[str, float]:
    """Return trainable parameters, and 10**9 multiply-adds of one image, forward and in training.

    The backward pass is about two forward passes: Kaplan et al. 2020, arXiv:2001.08361, section
    2.1. A linear probe has none but for its head, which has no images to pass a gradient to.

    Multiply-adds are those of convolutions and matrix products, as papers count them; of a network
    that is trained in stages, those of the last. Attention is computed as the matrix products that
    it is: of the CPU's fused kernel the counter knows nothing.

    Raises:
        ConfigError: the network does not take images of the configured size, or has no head that a
            linear probe could train.
    """
    was_training = network.training
    network.eval()
    as_products = sdpa_kernel(SDPBackend.MATH)
    with _in_last_stage(network, config), as_products, FlopCounterMode(display=False) as counter:
        # Not under no_grad: the counter's hooks fail on parameters that a module is called with.
        output = _shown(network, config, config.data.image_size, "data.image_size")
    network.train(was_training)
    num_params = sum(p.numel() for p in network.parameters() if p.requires_grad)
    gmacs = counter.get_total_flops() / 2e9
    training_gmacs = 3 * gmacs
    if config.recipe.linear_probe:
        name = f"{type(network).__name__}.{head_name(network, output.shape[-1])}"
        training_gmacs = gmacs + sum(counter.get_flop_counts()[name].values()) / 2e9
    return {
        "model/num_params": num_params,
        "model/gmacs": gmacs,
        "model/training_gmacs": training_gmacs,
    }


def check_step(network: nn.Module, config: Config) -> None:
    """Refuse what the config could not train or judge, whatever the images; network stays as it is.

    Raises:
        ConfigError: the network does not take the images of the protocol; the objective is its own
            cost, and it has none; or micro-batches of one image leave batch norm a single value,
            which torch refuses.
    """
    recipe = config.recipe
    _try_size(network, config, parse_protocol(config.data.eval_protocol).crop, "data.eval_protocol")
    if recipe.progressive_resize:
        start_size = recipe.progressive_resize.start_size
        _try_size(network, config, start_size, "recipe.progressive_resize.start_size")
    if recipe.loss == "model":
        _check_own_cost(network, config)
    if recipe.global_batch_size == recipe.num_micro_batches and not recipe.linear_probe:
        _check_single_image(network, config)


def _try_size(network: nn.Module, config: Config, size: int, key: str) -> None:
    if size == config.data.image_size:  # which was tried when it was counted
        return
    was_training = network.training
    with torch.no_grad():
        _shown(network.eval(), config, size, key)
    network.train(was_training)


def _shown(network: nn.Module, config: Config, size: int, key: str) -> Any:
    """Return what a network makes of an image of a size, which a key of the config says."""
    try:
        return network(_image(config, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        value = config.data.eval_protocol if key == "data.eval_protocol" else size
        raise ConfigError(
            f"model={config.model.name} does not take images of {key}={value} and "
            f"data.in_channels={config.data.in_channels}: {str(error).splitlines()[0]}"
        ) from error


def _check_own_cost(network: nn.Module, config: Config) -> None:
    was_training = network.training
    with torch.no_grad():
        output = network.eval()(_image(config, config.data.image_size))
    network.train(was_training)
    if isinstance(output, torch.Tensor) and output.shape == (1,):
        return
    shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    raise ConfigError(
        f"recipe.loss=model: the output of model={config.model.name} would be minimised as the "
        f"cost of each image, (n,), and for one image it is {shape}: these are no costs, so that "
        "nothing would be learned. Set recipe.loss=cross_entropy, or bce, or take a network "
        "that returns its cost, such as autoencoder_2006."
    )


def _check_single_image(network: nn.Module, config: Config) -> None:
    progressive = config.recipe.progressive_resize
    size = progressive.start_size if progressive else config.data.image_size
    try:
        copy.deepcopy(network).train()(_image(config, size))  # whose statistics are thrown away
    except ValueError as error:
        batch = config.recipe.global_batch_size
        raise ConfigError(
            f"recipe.global_batch_size={batch} in recipe.num_micro_batches={batch} are micro-"
            f"batches of one image, and model={config.model.name} cannot learn from one at "
            f"{size} pixels: {error}. Batch norm needs more values than one. Lower "
            "recipe.num_micro_batches, or raise the global batch."
        ) from error


def _image(config: Config, size: int) -> torch.Tensor:
    return torch.zeros(1, config.data.in_channels, size, size)


@contextmanager
def _in_last_stage(network: Any, config: Config) -> Iterator[None]:
    stages = config.recipe.phases
    if not stages or not hasattr(network, "stage"):
        yield
        return
    before, network.stage = network.stage, stages[-1].stage
    yield
    network.stage = before
