"""What an optimizer keeps of a parameter: tensors as large as it, and a few numbers."""

from typing import Any

import torch

ParamState = dict[str, Any]  # of one parameter, by name


def to_meta(slots: ParamState) -> ParamState:
    """Return slots with tensors of no memory in place of the large ones."""
    return {name: value.to("meta") if _is_large(value) else value for name, value in slots.items()}


def empty_like_meta(outlined: ParamState, device: torch.device) -> ParamState:
    """Return slots like those outlined, with memory whose content is still to come."""
    return {
        name: torch.empty_like(value, device=device) if _is_large(value) else value
        for name, value in outlined.items()
    }


def clone_to(slots: ParamState, device: torch.device) -> ParamState:
    """Return slots with the large tensors in memory of their own on a device."""
    return {
        name: value.to(device, copy=True) if _is_large(value) else value
        for name, value in slots.items()
    }


def large_tensors(slots: ParamState) -> list[torch.Tensor]:
    """Return the tensors that are worth a transfer each."""
    return [value for value in slots.values() if _is_large(value)]


def _is_large(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0
