"""Load a checkpoint on rank 0 and distribute it to the other ranks.

The store is read once, however many ranks there are, and a rank never holds more of the state than
it keeps, plus one parameter's: rank 0 maps the files into memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from orchestrator.checkpoint.safetensors_io import read_tensors
from orchestrator.checkpoint.store import CheckpointError, Files
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.strategy.param_state import ParamState, in_layout_of, to_meta
from orchestrator.training.strategy.strategy import Strategy
from orchestrator.training.task.warm_start import differences

# Raised by torch and safetensors for unexpected names, shapes or bytes. A file with more than
# tensors is an UnpicklingError: nothing in it is executed (weights_only=True).
_LOAD_ERRORS = (
    *(AttributeError, KeyError, RuntimeError, TypeError, ValueError),
    *(UnpicklingError, SafetensorError),
)


@dataclass(frozen=True)
class _Loaded:
    """The content of a checkpoint; `weights` are of the model and the EMA."""

    step: int
    scaler: dict[str, Any]
    param_groups: list[dict[str, Any]]
    param_states: dict[int, ParamState]
    weights: tuple[Mapping[str, Tensor], ...]

    def without_tensors(self) -> "_Loaded":
        metas = {index: to_meta(state) for index, state in self.param_states.items()}
        return replace(self, param_states=metas, weights=())


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
    for number, model in enumerate(state.models):
        _scatter_weights(model, loaded.weights[number] if loaded else None, state.strategy)
    states = _scatter_param_states(loaded, header, state.strategy)
    all_params = (param for group in state.optimizer.param_groups for param in group["params"])
    params = dict(enumerate(all_params))
    try:
        states = {index: in_layout_of(params[index], kept) for index, kept in states.items()}
        state.optimizer.load_state_dict({"state": states, "param_groups": header.param_groups})
    except _LOAD_ERRORS as error:
        raise _mismatch(error) from error
    if header.scaler:
        state.scaler.load_state_dict(header.scaler)
    return int(header.step)


def _load(state: TrainState, files: Files) -> _Loaded:
    header = json.loads(files["state.json"].read_bytes())
    names = ("model.safetensors", "ema.safetensors")
    weights = tuple(
        _read_weights(model, files[name]) for name, model in zip(names, state.models, strict=False)
    )
    optimizer = torch.load(files["optimizer.pt"], weights_only=True, map_location="cpu", mmap=True)
    settings, param_states = optimizer["param_groups"], optimizer["state"]
    return _Loaded(header["step"], header["scaler"], settings, param_states, weights)


def _read_weights(model: nn.Module, path: Path) -> Mapping[str, Tensor]:
    tensors = read_tensors(path)
    if difference := differences(tensors, model.state_dict()):
        raise ValueError(difference)
    return tensors


def _scatter_weights(
    model: nn.Module, tensors: Mapping[str, Tensor] | None, strategy: Strategy
) -> None:
    """Set the weights and buffers of a model on every rank to those that rank 0 has read."""
    for name, tensor in model.state_dict().items():
        strategy.scatter(tensor, None if tensors is None else tensors[name])


def _scatter_param_states(
    loaded: _Loaded | None, header: _Loaded, strategy: Strategy
) -> dict[int, ParamState]:
    """Distribute the optimizer state; return what this rank keeps of it."""
    kept = {}
    for index, meta in header.param_states.items():
        whole = None if loaded is None else loaded.param_states.pop(index)
        param_state = strategy.scatter_param_state(index, meta, whole)
        if param_state is not None:
            kept[index] = param_state
    return kept


def _mismatch(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint does not fit the model and recipe of this run: {error!r}; another model "
        "or recipe wrote its files, or they have been changed",
        hint="Start a new run; `init_from` loads weights alone.",
    )
