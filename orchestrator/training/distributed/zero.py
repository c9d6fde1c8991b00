"""Optimizer state sharded over the ranks: ZeRO, stage 1.

Momentum and second moments of a parameter live on one rank, which alone updates the parameter and
broadcasts it. Every rank has all gradients, so clipping and skipped steps are the same everywhere.
Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 5.1.

torch's ZeroRedundancyOptimizer constructs the optimizer itself and sends a rank's state as one
pickle. `ZeroOptimizer` wraps any existing optimizer and sends tensor by tensor.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from orchestrator.config.parse import ConfigError
from orchestrator.training.distributed.world import World

ParamState = dict[str, Any]  # the optimizer's state of one parameter, by name


def to_meta(state: ParamState) -> ParamState:
    """Move the large tensors to the meta device, where they take no memory."""
    return _map_large(lambda tensor: tensor.to("meta"), state)


def empty_like_meta(meta: ParamState, device: torch.device) -> ParamState:
    """Allocate the large tensors on a device, uninitialised."""
    return _map_large(lambda tensor: torch.empty_like(tensor, device=device), meta)


def clone_to(state: ParamState, device: torch.device) -> ParamState:
    """Copy the large tensors to a device."""
    return _map_large(lambda tensor: tensor.to(device, copy=True), state)


def large_tensors(state: ParamState) -> list[torch.Tensor]:
    """List the tensors that are transferred one by one; the rest is a few numbers."""
    return [value for value in state.values() if _is_large(value)]


def _map_large(function: Callable[[torch.Tensor], torch.Tensor], state: ParamState) -> ParamState:
    return {name: function(value) if _is_large(value) else value for name, value in state.items()}


def _is_large(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


class ZeroOptimizer:
    """Assigns the state of each parameter, by its index in the optimizer, to a rank."""

    def __init__(self, optimizer: torch.optim.Optimizer, world: World) -> None:
        if type(optimizer).__name__ == "Kron":
            raise ConfigError(
                "strategy=ddp_zero1: kron draws from one random generator for all parameters, so "
                "sharding would change its draws",
                value="ddp_zero1",
                hint="Set strategy=ddp, or take another optimizer.",
            )
        if any(group.get("max_grad_norm") for group in optimizer.param_groups):
            raise ConfigError(
                "strategy=ddp_zero1: this optimizer clips by the norm of all gradients, and a rank "
                "would see those of its own parameters only",
                value="ddp_zero1",
                hint="Set recipe.optimizer.kwargs.max_grad_norm=null and use "
                "recipe.clip_grad_norm, or set strategy=ddp.",
            )
        self._world = world
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        self._owners = balance_by_size([param.numel() for param in self._params], world.size)

    def owns(self, index: int) -> bool:
        """Check whether this rank keeps the state of a parameter."""
        return self._owners[index] == self._world.rank

    @contextmanager
    def step(self) -> Iterator[None]:
        """Restrict an optimizer step to this rank's parameters, then broadcast them all."""
        grads = [param.grad for param in self._params]
        for index, param in enumerate(self._params):
            if not self.owns(index):
                param.grad = None  # optimizers skip it
        yield
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        for rank in range(self._world.size):
            owned = zip(self._params, self._owners, strict=True)
            self._world.broadcast([param.detach() for param, owner in owned if owner == rank], rank)

    def gather(self, local: Mapping[int, ParamState]) -> Iterator[tuple[int, ParamState]]:
        """Yield the state of every parameter on rank 0, and nothing on other ranks.

        A collective: every rank must exhaust the iterator, since it sends its own state meanwhile.
        """
        world = self._world
        metas = world.gather_objects({index: to_meta(state) for index, state in local.items()})
        meta_by_index = {index: state for meta in metas for index, state in meta.items()}
        for index in sorted(meta_by_index):
            owner = self._owners[index]
            if owner == world.rank:
                state = local[index]
            elif world.is_main:
                state = empty_like_meta(meta_by_index[index], world.device)
            else:
                continue
            for tensor in large_tensors(state):
                world.send_to_rank0(tensor, owner)
            if world.is_main:
                yield index, state


def balance_by_size(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """Assign a rank to each size, the largest first, to the rank with the least so far."""
    loads, ranks = [0] * num_ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        ranks[index] = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        loads[ranks[index]] += sizes[index]
    return ranks
