"""An optimizer whose slots are spread over the ranks: ZeRO, stage 1.

Momentum and second moments of a parameter live on one rank, which alone updates it and sends it to
the others. Every rank has all gradients, so what is clipped and skipped is decided alike.
Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
section 5.1.

torch's ZeroRedundancyOptimizer makes an optimizer of a class and its arguments, and hands over what
a rank has as one pickle. This takes any optimizer that there is already, and goes tensor by tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from orchestrator.config.parse import ConfigError
from orchestrator.training.distributed.optimizer_state import (
    ParamState,
    empty_like_meta,
    large_tensors,
    to_meta,
)
from orchestrator.training.distributed.world import World


class ZeroOptimizer:
    """Who keeps the slots of which parameter, by its number in the optimizer's state."""

    def __init__(self, optimizer: torch.optim.Optimizer, world: World) -> None:
        """Share the parameters out.

        Raises:
            ConfigError: the optimizer looks at all gradients together.
        """
        if type(optimizer).__name__ == "Kron":
            raise ConfigError(
                "strategy=ddp_zero1: kron draws from one generator for all parameters, and would "
                "draw others for a share of them. Take strategy=ddp, or another optimizer."
            )
        if any(group.get("max_grad_norm") for group in optimizer.param_groups):
            raise ConfigError(
                "strategy=ddp_zero1: this optimizer clips by the norm of all gradients, and would "
                "see those of one rank. Set recipe.optimizer.kwargs.max_grad_norm=null and "
                "recipe.clip_grad_norm in its place, or strategy=ddp."
            )
        self._world = world
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        self._owners = balance_by_size([param.numel() for param in self._params], world.size)

    def owns(self, index: int) -> bool:
        """Whether this rank keeps the slots of a parameter."""
        return self._owners[index] == self._world.rank

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let an optimizer's step change this rank's parameters; then give each to all ranks."""
        grads = [param.grad for param in self._params]
        for index, param in enumerate(self._params):
            if not self.owns(index):
                param.grad = None  # which every optimizer passes over
        yield
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        for rank in range(self._world.size):
            owned = zip(self._params, self._owners, strict=True)
            self._world.broadcast([param.detach() for param, owner in owned if owner == rank], rank)

    def gather(self, mine: Mapping[int, ParamState]) -> Iterator[tuple[int, ParamState]]:
        """Yield the slots of every parameter that has some on rank 0, and nothing elsewhere.

        All ranks must go through it, since they send theirs meanwhile.
        """
        world = self._world
        outlines = world.gather_objects({index: to_meta(slots) for index, slots in mine.items()})
        found = {index: slots for outlined in outlines for index, slots in outlined.items()}
        for index in sorted(found):
            owner = self._owners[index]
            if owner == world.rank:
                slots = mine[index]
            elif world.is_main:
                slots = empty_like_meta(found[index], world.device)
            else:
                continue
            for tensor in large_tensors(slots):
                world.send_to_rank0(tensor, owner)
            if world.is_main:
                yield index, slots


def balance_by_size(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """Return a rank for each size, so that the ranks get about the same: the largest go first."""
    loads, ranks = [0] * num_ranks, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        ranks[index] = min(range(num_ranks), key=lambda rank: (loads[rank], rank))
        loads[ranks[index]] += sizes[index]
    return ranks
