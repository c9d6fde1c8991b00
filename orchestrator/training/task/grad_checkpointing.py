"""Activation checkpointing: a block's activations are computed again in the backward pass.

Of each block only the inputs are kept (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost"), so memory falls by the depth of the blocks, for about one more forward pass. The result is
the same bits: the second pass draws the noise of the first, and what it does to running statistics
is undone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.blocks import find_blocks
from orchestrator.config.parse import ConfigError


def enable_grad_checkpointing(network: nn.Module) -> None:
    """Checkpoint the activations of a network's blocks; its own blocks, if it is timm's.

    Raises:
        ConfigError: no blocks are found.
    """
    if _enable_own(network):
        return
    blocks = find_blocks(network)
    if not blocks:
        name = type(network).__name__
        raise ConfigError(
            f"recipe.grad_checkpointing: {name} is not built of blocks whose activations could be "
            "computed again, so nothing would be saved",
            value=name,
            hint="Set recipe.grad_checkpointing=false, or give the network a method "
            "set_grad_checkpointing, as timm's have.",
        )
    for _, block in blocks:
        kind: Any = type(block)
        block.__class__ = _checkpointed(kind)


def _enable_own(network: Any) -> bool:
    """Use the method that most networks of timm have; false if there is none to use."""
    if not hasattr(network, "set_grad_checkpointing"):
        return False
    try:
        network.set_grad_checkpointing(True)
    except AssertionError:  # how timm says that a network has the method but not the feature
        return False
    return True


@cache
def _checkpointed(block: Any) -> Any:
    """Derive a class of blocks, by which parameters keep their names and copies are their own."""
    return type(block.__name__, (_Checkpointed, block), {})


class _Checkpointed(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a block as its class does, keeping its inputs alone if gradients will follow."""
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        # A list may grow before the backward pass, as DenseNet's list of feature maps does.
        kept = [[*value] if isinstance(value, list) else value for value in args]
        return checkpoint(super().forward, *kept, use_reentrant=False, **kwargs)


@contextmanager
def restored_buffers(network: nn.Module) -> Iterator[None]:
    """Undo what the block does to buffers: a backward pass would update batch norms once more."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    yield
    for module, name, buffer, copy in buffers:
        if getattr(module, name) is not buffer:  # a forward pass has put another in its place
            setattr(module, name, buffer)
        with torch.no_grad():
            buffer.copy_(copy)
