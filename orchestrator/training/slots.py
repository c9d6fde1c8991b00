"""What an optimizer keeps of a parameter: tensors as large as it, and a few numbers."""

from typing import Any

import torch

Slots = dict[str, Any]  # of one parameter, by name


def outline(slots: Slots) -> Slots:
    """Return slots with tensors of no memory in place of the large ones."""
    return {name: value.to("meta") if _is_large(value) else value for name, value in slots.items()}


def allocate(outlined: Slots, device: torch.device) -> Slots:
    """Return slots like those outlined, with memory whose content is still to come."""
    return {
        name: torch.empty_like(value, device=device) if _is_large(value) else value
        for name, value in outlined.items()
    }


def copied(slots: Slots, device: torch.device) -> Slots:
    """Return slots with the large tensors in memory of their own on a device."""
    return {
        name: value.to(device, copy=True) if _is_large(value) else value
        for name, value in slots.items()
    }


def large(slots: Slots) -> list[torch.Tensor]:
    """Return the tensors that are worth a transfer each."""
    return [value for value in slots.values() if _is_large(value)]


def _is_large(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0
