"""A checkpoint's state, taken over by all ranks: rank 0 has read it, the others get it from there.

So a store is read once, however many ranks there are, and a rank never holds more of the optimizer
than it will keep, and one tensor.
"""

import json
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from orchestrator.checkpoint.safetensors_io import read_safetensors
from orchestrator.checkpoint.store import CheckpointError, Files
from orchestrator.training.distributed.world import World
from orchestrator.training.distributed.zero import (
    ParamState,
    clone_to,
    empty_like_meta,
    large_tensors,
    to_meta,
)
from orchestrator.training.state.train_state import TrainState

# What torch and safetensors raise for names, shapes or bytes that they did not expect. A file that
# holds more than tensors is an UnpicklingError: nothing in it is run (weights_only=True).
_UNFIT = (
    *(AttributeError, KeyError, RuntimeError, TypeError, ValueError),
    *(UnpicklingError, SafetensorError),
)


@dataclass(frozen=True)
class _Read:
    """What rank 0 has read, besides the weights, which are in the network already."""

    step: int
    scaler: dict[str, Any]
    groups: list[dict[str, Any]]
    slots: dict[int, ParamState]

    def outlined(self) -> "_Read":
        slots = {index: to_meta(slots) for index, slots in self.slots.items()}
        return _Read(self.step, self.scaler, self.groups, slots)


def restore(state: TrainState, parts: Files | None, world: World) -> int:
    """Take over a checkpoint's state and return its step.

    Args:
        parts: the files of the checkpoint on rank 0, None on the others.

    Raises:
        CheckpointError: the files do not fit this model or recipe; on every rank alike.
    """
    read: _Read | CheckpointError | None = None
    if parts is not None:
        try:
            read = _read(state, parts)
        except _UNFIT as error:
            read = _misfit(error)
    told = world.broadcast_object(read.outlined() if isinstance(read, _Read) else read)
    if isinstance(told, CheckpointError):
        raise told
    for network in filter(None, (state.network, state.ema)):
        for tensor in (*network.parameters(), *network.buffers()):
            world.broadcast([tensor.detach()])
    slots = _broadcast_optimizer_state(
        state, read if isinstance(read, _Read) else None, told, world
    )
    try:
        state.optimizer.load_state_dict({"state": slots, "param_groups": told.groups})
    except _UNFIT as error:
        raise _misfit(error) from error
    if told.scaler:
        state.scaler.load_state_dict(told.scaler)
    return int(told.step)


def _read(state: TrainState, parts: Files) -> _Read:
    rest = json.loads(parts["state.json"].read_bytes())
    read_safetensors(state.network, parts["model.safetensors"])
    if state.ema is not None:
        read_safetensors(state.ema, parts["ema.safetensors"])
    known = torch.load(parts["optimizer.pt"], weights_only=True, map_location="cpu", mmap=True)
    return _Read(rest["step"], rest["scaler"], known["param_groups"], known["state"])


def _broadcast_optimizer_state(
    state: TrainState, read: _Read | None, told: _Read, world: World
) -> dict[int, ParamState]:
    """Return the slots that this rank keeps."""
    kept = {}
    for index, outlined in told.slots.items():
        if read is None:
            slots = empty_like_meta(outlined, world.device)
        else:
            slots = clone_to(read.slots.pop(index), world.device)
        for tensor in large_tensors(slots):
            world.broadcast([tensor])
        if state.zero is None or state.zero.owns(index):
            kept[index] = slots
    return kept


def _misfit(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model and recipe of this run: {error!r}. Its files were "
        "written by another one, or have been changed. Start a new run; `init_from` takes weights."
    )
