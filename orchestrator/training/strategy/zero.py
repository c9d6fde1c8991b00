"""Optimizer state sharded over the ranks: ZeRO, stage 1.

Momentum and second moments of a parameter live on one rank, which alone updates the parameter and
broadcasts it. Every rank has all gradients, so clipping and skipped steps are the same everywhere.
Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 5.1.

torch's ZeroRedundancyOptimizer constructs the optimizer itself and sends a rank's state as one
pickle. `DdpZero1` takes any existing optimizer and sends tensor by tensor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.optim import Optimizer

from orchestrator.config.parse import ConfigError
from orchestrator.config.strategy import Strategy
from orchestrator.training.distributed.world import World
from orchestrator.training.strategy.ddp import Ddp
from orchestrator.training.strategy.param_state import (
    ParamState,
    empty_like_meta,
    large_tensors,
    to_meta,
)


class DdpZero1(Ddp):
    """DDP; the optimizer's state of a parameter, by its index, is on one rank."""

    def __init__(self, world: World, config: Strategy) -> None:
        super().__init__(world, config)
        self._params: list[nn.Parameter] = []
        self._owners: list[int] = []

    def attach(self, optimizer: Optimizer) -> None:
        """Assign the state of each parameter to a rank."""
        _check_updates_alone(optimizer)
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        sizes = [param.numel() for param in self._params]
        self._owners = balance_by_size(sizes, self.world.size)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Restrict an optimizer step to this rank's parameters, then broadcast them all."""
        grads = [param.grad for param in self._params]
        for index, param in enumerate(self._params):
            if not self._owns(index):
                param.grad = None  # optimizers skip it
        yield
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        for rank in range(self.world.size):
            owned = zip(self._params, self._owners, strict=True)
            self.world.broadcast([param.detach() for param, owner in owned if owner == rank], rank)

    def gather_optimizer_state(self, optimizer: Optimizer) -> Iterator[tuple[int, ParamState]]:
        """Yield the state of every parameter on rank 0, and nothing on other ranks."""
        world, local = self.world, optimizer.state_dict()["state"]
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

    def scatter_param_state(
        self, index: int, meta: ParamState, whole: ParamState | None
    ) -> ParamState | None:
        state = super().scatter_param_state(index, meta, whole)
        return state if self._owns(index) else None

    def _owns(self, index: int) -> bool:
        return self._owners[index] == self.world.rank


def _check_updates_alone(optimizer: Optimizer) -> None:
    """Refuse optimizers whose update of a parameter depends on the others."""
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


def balance_by_size(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """Assign a rank to each size, the largest first, to the rank with the least so far."""
    loads, ranks = [0] * num_ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        ranks[index] = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        loads[ranks[index]] += sizes[index]
    return ranks
