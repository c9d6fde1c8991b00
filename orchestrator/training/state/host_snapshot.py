"""The state of one step, copied to host memory, so that it can be written while training goes on.

It costs one copy of the state, in memory that is allocated once: pinned where the state is on a
GPU, so that the copy runs at the speed of the bus.
"""

import copy
import json
import sys
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from orchestrator.checkpoint.safetensors_io import unique_tensors, write_safetensors
from orchestrator.checkpoint.store import FORMAT, WriteFn
from orchestrator.training.state.train_state import TrainState


@dataclass
class HostSnapshot:
    """Memory for the state of a step, which each `capture` uses again."""

    _buffers: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)

    def capture(self, state: TrainState, step: int) -> dict[str, WriteFn]:
        """Copy the state, and return what writes the files of its checkpoint.

        They must have been written, or be given up, before the next `capture`.
        """
        parts = {"model.safetensors": self._weights("model", state.network)}
        if state.ema is not None:
            parts["ema.safetensors"] = self._weights("ema", state.ema)
        parts["optimizer.pt"] = self._slots(state)
        rest = {"format": FORMAT, "step": step, "scaler": state.scaler.state_dict()}
        text = json.dumps(rest, indent=2).encode()
        parts["state.json"] = lambda file: file.write(text)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies are on their way
        return parts

    def _weights(self, key: str, network: torch.nn.Module) -> WriteFn:
        tensors, aliases = unique_tensors(network)
        kept = {name: self._kept((key, name), tensor) for name, tensor in tensors.items()}
        return lambda file: write_safetensors(file, kept, aliases)

    def _slots(self, state: TrainState) -> WriteFn:
        kept = {
            "state": {
                number: {
                    # Equal strings are one, so that a pickle of the same state is the same file.
                    sys.intern(name): self._kept(("optimizer", str(number), name), value)
                    for name, value in slots.items()
                }
                for number, slots in state.iter_optimizer_state()
            },
            "param_groups": copy.deepcopy(state.optimizer.state_dict()["param_groups"]),
        }

        def write(file: IO[bytes]) -> None:
            torch.save(kept, file)

        return write

    def _kept(self, key: tuple[str, ...], value: Any) -> Any:
        """Return a copy of a tensor on the host; what is none is small, and copied as it is."""
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(value.detach(), non_blocking=True)
