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
from models.blocks import find_blocks
from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Compile
from orchestrator.config.schema import Config
from orchestrator.training.task.grad_checkpointing import enable_grad_checkpointing
from orchestrator.training.task.linear_probe import head_name


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Build the configured network for the data set's classes, on the CPU.

    Raises:
        ConfigError: there is no such network, it does not take these options or images, or it has
            no activations to checkpoint.
    """
    name, in_channels = config.model.name, config.data.in_channels
    try:
        network = models.build(
            name, num_classes=num_classes, in_channels=in_channels, **config.model.kwargs
        )
    except ValueError as error:
        raise ConfigError(f"model={name}: {error}", value=name) from error
    if config.recipe.grad_checkpointing:
        enable_grad_checkpointing(network)
    return network


def model_cost(network: nn.Module, config: Config) -> dict[str, float]:
    """Count trainable parameters, and 10**9 multiply-adds of an image, forward and in training.

    The backward pass is about two forward passes: Kaplan et al. 2020, arXiv:2001.08361, section
    2.1. A linear probe has none but for its head, which has no images to pass a gradient to.

    Multiply-adds are those of convolutions and matrix products, as papers count them, and in a
    training with phases those of the last. Attention is computed as the matrix products that it
    is: the counter does not know the CPU's fused kernel.

    Raises:
        ConfigError: the network does not take images of the configured size, or has no head that a
            linear probe could train.
    """
    as_products, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    with _eval_mode(network), _in_last_phase(network, config), as_products, counter:
        # Not under no_grad: the counter's hooks fail on parameters that a module is called with.
        output = _forward(network, config, config.data.image_size, "data.image_size")
    gmacs = counter.get_total_flops() / 2e9
    training_gmacs = 3 * gmacs
    if config.recipe.linear_probe:
        name = f"{type(network).__name__}.{head_name(network, output.shape[-1])}"
        training_gmacs = gmacs + sum(counter.get_flop_counts()[name].values()) / 2e9
    return {
        "model/num_params": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "model/gmacs": gmacs,
        "model/training_gmacs": training_gmacs,
    }


def check_step(network: nn.Module, config: Config) -> None:
    """Refuse a network that the config could not train or evaluate; leave it as it is.

    Raises:
        ConfigError: the network does not take the images of the protocol; the loss is the
            network's own, and it has none; blocks are to be compiled, and it has none; or micro-
            batches of one image leave batch norm a single value, which torch refuses.
    """
    recipe = config.recipe
    if isinstance(recipe.compile, Compile) and recipe.compile.regional:
        _check_blocks(network)
    sizes = {"data.eval_protocol": parse_protocol(config.data.eval_protocol).crop}
    if recipe.progressive_resize:
        key = "recipe.progressive_resize.start_size"
        sizes[key] = recipe.progressive_resize.start_size
    with torch.no_grad(), _eval_mode(network):
        for key, size in sizes.items():
            if size != config.data.image_size:  # which model_cost has tried
                _forward(network, config, size, key)
        if recipe.loss == "model":
            _check_model_loss(network(_image(config, config.data.image_size)), config)
    if recipe.global_batch_size == recipe.num_micro_batches and not recipe.linear_probe:
        _check_single_image(network, config)


def _forward(network: nn.Module, config: Config, size: int, key: str) -> Any:
    """Return a network's output for an image whose size comes from a key of the config."""
    try:
        return network(_image(config, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        value = config.data.eval_protocol if key == "data.eval_protocol" else size
        raise ConfigError(
            f"model={config.model.name} does not take images of {key}={value} and "
            f"data.in_channels={config.data.in_channels}: {str(error).splitlines()[0]}",
            value=value,
        ) from error


def _check_model_loss(output: Any, config: Config) -> None:
    is_tensor = isinstance(output, torch.Tensor)
    if is_tensor and output.shape == (1,):
        return
    shape = list(output.shape) if is_tensor else type(output).__name__
    raise ConfigError(
        f"recipe.loss=model minimises the output of the network as the cost of each image, (n,), "
        f"and that of model={config.model.name} for one image is {shape}: it would learn nothing",
        value=config.model.name,
        hint="Set recipe.loss=cross_entropy or bce, or take a network that returns its cost, such "
        "as autoencoder_2006.",
    )


def _check_blocks(network: nn.Module) -> None:
    if not find_blocks(network):
        name = type(network).__name__
        raise ConfigError(
            f"recipe.compile.regional=true: {name} is not built of blocks that repeat, so nothing "
            "would be compiled",
            value=name,
            hint="Set recipe.compile=true, which compiles the whole network.",
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
            f"batches of one image, from which model={config.model.name} cannot learn at {size} "
            f"pixels: {error}. Batch norm needs more values than one",
            value=batch,
            hint="Lower recipe.num_micro_batches, or raise recipe.global_batch_size.",
        ) from error


def _image(config: Config, size: int) -> torch.Tensor:
    return torch.zeros(1, config.data.in_channels, size, size)


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    yield
    network.train(was_training)


@contextmanager
def _in_last_phase(network: Any, config: Config) -> Iterator[None]:
    phases = config.recipe.phases
    if not phases or not hasattr(network, "stage"):
        yield
        return
    before, network.stage = network.stage, phases[-1].stage
    yield
    network.stage = before
