"""The training state of one step, copied to host memory, to be written while training goes on.

It costs one copy of the state, in memory that is allocated once: pinned if the state is on a GPU,
so that the copy runs at the speed of the bus.
"""

import copy
import json
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from orchestrator.checkpoint.safetensors_io import unique_tensors, write_safetensors
from orchestrator.checkpoint.store import FORMAT, WriteFn
from orchestrator.training.state.train_state import TrainState


@dataclass
class HostSnapshot:
    """Host memory of rank 0 for the state of a step, reused by each `capture`."""

    _buffers: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)

    def capture(self, state: TrainState, step: int) -> dict[str, WriteFn]:
        """Copy the state; return a function for each checkpoint file that writes it.

        A collective: the other ranks call `send_to_rank0` meanwhile.

        The files must be written, or given up, before the next `capture`.
        """
        files = {
            f"{name}.safetensors": self._weights(name, model, state)
            for name, model in zip(("model", "ema"), state.models, strict=False)
        }
        files["optimizer.pt"] = self._optimizer(state)
        header = {"format": FORMAT, "step": step, "scaler": state.scaler.state_dict()}
        text = json.dumps(header, indent=2).encode()
        files["state.json"] = lambda file: file.write(text)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are asynchronous
        return files

    def _weights(self, key: str, model: torch.nn.Module, state: TrainState) -> WriteFn:
        tensors, aliases = unique_tensors(model)
        copies = {
            name: self._to_host((key, name), state.strategy.gather(tensor))
            for name, tensor in tensors.items()
        }
        return lambda file: write_safetensors(file, copies, aliases)

    def _optimizer(self, state: TrainState) -> WriteFn:
        copies = {
            "state": {
                index: {
                    # One object for equal strings, so that equal states give equal pickles.
                    sys.intern(name): self._to_host(("optimizer", str(index), name), value)
                    for name, value in param_state.items()
                }
                for index, param_state in state.strategy.gather_optimizer_state(state.optimizer)
            },
            "param_groups": copy.deepcopy(state.optimizer.state_dict()["param_groups"]),
        }

        def write(file: IO[bytes]) -> None:
            torch.save(copies, file)

        return write

    def _to_host(self, key: tuple[str, ...], value: Any) -> Any:
        """Copy a tensor into the buffer of its key; other values are small and copied as such."""
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(value.detach(), non_blocking=True)


def send_to_rank0(state: TrainState) -> None:
    """Send this rank's part of what rank 0 captures, in the order of `HostSnapshot.capture`."""
    for model in state.models:
        for tensor in unique_tensors(model)[0].values():
            state.strategy.gather(tensor)
    deque(state.strategy.gather_optimizer_state(state.optimizer), maxlen=0)
