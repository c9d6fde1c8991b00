"""Modules whose parameters FSDP gathers together."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import find_blocks


def vectors_of(block: nn.Module) -> list[nn.Module]:
    """List the layers of a block that have vectors and nothing else, such as norms."""
    return [module for module in block.modules() if _has_vectors_only(module)]


def tied_across(model: nn.Module) -> Iterator[str]:
    """Yield the names of parameters that a block shares with the rest of a model."""
    prefixes = [f"{name}." for name, _ in find_blocks(model)]
    seen: dict[nn.Parameter, str | None] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if seen.setdefault(parameter, owner) != owner:
            yield name


def clone_views(block: nn.Module, _: Any, output: Any) -> Any:
    """Clone an output that is a view: FSDP's hook on it would be lost if it were changed in place.

    A forward hook. torch warns of this: gradients could be wrong.
    """
    is_view = isinstance(output, Tensor) and torch.is_grad_enabled() and output._is_view()
    return output.clone() if is_view else output


def _has_vectors_only(module: nn.Module) -> bool:
    has_own = next(module.parameters(recurse=False), None) is not None
    return has_own and all(parameter.dim() <= 1 for parameter in module.parameters())
