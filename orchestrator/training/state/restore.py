"""Load a checkpoint on rank 0 and broadcast it to the other ranks.

The store is read once, however many ranks there are, and a rank never holds more of the optimizer
state than it keeps, plus one parameter's.
"""

import json
from dataclasses import dataclass, replace
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

# Raised by torch and safetensors for unexpected names, shapes or bytes. A file with more than
# tensors is an UnpicklingError: nothing in it is executed (weights_only=True).
_LOAD_ERRORS = (
    *(AttributeError, KeyError, RuntimeError, TypeError, ValueError),
    *(UnpicklingError, SafetensorError),
)


@dataclass(frozen=True)
class _Loaded:
    """The content of a checkpoint besides the weights, which are loaded into the model directly."""

    step: int
    scaler: dict[str, Any]
    param_groups: list[dict[str, Any]]
    param_states: dict[int, ParamState]

    def without_tensors(self) -> "_Loaded":
        metas = {index: to_meta(state) for index, state in self.param_states.items()}
        return replace(self, param_states=metas)


def restore(state: TrainState, files: Files | None, world: World) -> int:
    """Load a checkpoint into the state of every rank; return the number of steps done.

    Args:
        files: the checkpoint on rank 0, None on other ranks.

    Raises:
        CheckpointError: the files do not fit this model or recipe; on every rank.
    """
    loaded: _Loaded | CheckpointError | None = None
    if files is not None:
        try:
            loaded = _load(state, files)
        except _LOAD_ERRORS as error:
            loaded = _mismatch(error)
    header = world.broadcast_object(
        loaded.without_tensors() if isinstance(loaded, _Loaded) else loaded
    )
    if isinstance(header, CheckpointError):
        raise header
    assert not isinstance(loaded, CheckpointError)
    for model in filter(None, (state.model, state.ema)):
        for tensor in (*model.parameters(), *model.buffers()):
            world.broadcast([tensor.detach()])
    states = _broadcast_param_states(state, loaded, header, world)
    try:
        state.optimizer.load_state_dict({"state": states, "param_groups": header.param_groups})
    except _LOAD_ERRORS as error:
        raise _mismatch(error) from error
    if header.scaler:
        state.scaler.load_state_dict(header.scaler)
    return int(header.step)


def _load(state: TrainState, files: Files) -> _Loaded:
    header = json.loads(files["state.json"].read_bytes())
    read_safetensors(state.model, files["model.safetensors"])
    if state.ema is not None:
        read_safetensors(state.ema, files["ema.safetensors"])
    optimizer = torch.load(files["optimizer.pt"], weights_only=True, map_location="cpu", mmap=True)
    return _Loaded(header["step"], header["scaler"], optimizer["param_groups"], optimizer["state"])


def _broadcast_param_states(
    state: TrainState, loaded: _Loaded | None, header: _Loaded, world: World
) -> dict[int, ParamState]:
    """Broadcast the optimizer state; return what this rank keeps of it."""
    kept = {}
    for index, meta in header.param_states.items():
        if loaded is None:
            param_state = empty_like_meta(meta, world.device)
        else:
            param_state = clone_to(loaded.param_states.pop(index), world.device)
        for tensor in large_tensors(param_state):
            world.broadcast([tensor])
        if state.zero is None or state.zero.owns(index):
            kept[index] = param_state
    return kept


def _mismatch(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model and recipe of this run: {error!r}; another model "
        "or recipe wrote its files, or they have been changed",
        hint="Start a new run; `init_from` loads weights alone.",
    )
