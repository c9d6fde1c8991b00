"""The optimizer's state of one parameter: its tensors are transferred one by one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ParamState = dict[str, Any]  # by name


def to_meta(state: ParamState) -> ParamState:
    """Move the large tensors to the meta device, where they take no memory; the others to the CPU.

    A fused optimizer counts its steps on the GPU, and another rank may not have that one.
    """
    return {
        name: value.to("meta" if value.dim() else "cpu") if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def empty_like_meta(meta: ParamState, device: torch.device) -> ParamState:
    """Allocate the large tensors on a device, uninitialised."""
    return map_large(lambda tensor: torch.empty_like(tensor, device=device), meta)


def clone_to(state: ParamState, device: torch.device) -> ParamState:
    """Copy the large tensors to a device."""
    return map_large(lambda tensor: tensor.to(device, copy=True), state)


def in_layout_of(param: Tensor, state: ParamState) -> ParamState:
    """Give tensors the order in memory of their parameter, as they had before they were saved.

    A fused optimizer goes through both in that order, and would pair the wrong elements.
    """
    return {
        name: torch.empty_like(param, dtype=value.dtype).copy_(value)
        if type(value) is Tensor and value.shape == param.shape and value.dim() > 1
        else value
        for name, value in state.items()
    }


def large_tensors(state: ParamState) -> list[Tensor]:
    """List the tensors that are transferred one by one; the rest is a few numbers."""
    return [value for value in state.values() if _is_large(value)]


def map_large(function: Callable[[Tensor], Tensor], state: ParamState) -> ParamState:
    """Apply a function to the large tensors."""
    return {name: function(value) if _is_large(value) else value for name, value in state.items()}


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
