"""DDP: each rank has the whole model and optimizer state; gradients are averaged."""

import copy
import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, cast

from timm.utils import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from orchestrator.config.recipe import Recipe
from orchestrator.config.strategy import Strategy as StrategyConfig
from orchestrator.training.distributed.world import World
from orchestrator.training.strategy.comm_hooks import PowerSgd, compress_to_bf16
from orchestrator.training.strategy.param_state import (
    ParamState,
    clone_to,
    empty_like_meta,
    large_tensors,
)
from orchestrator.training.strategy.strategy import Strategy


class Ddp(Strategy):
    """The same weights, gradients and optimizer state on every rank."""

    def __init__(self, world: World, config: StrategyConfig) -> None:
        super().__init__(world)
        self._config = config
        self._comm_hook = config.comm_hook if world.size > 1 else None  # one rank sends nothing
        self._powersgd: PowerSgd | None = None

    def place(self, model: nn.Module, *, with_copy: bool) -> tuple[nn.Module, nn.Module | None]:
        model = model.to(self.world.device)
        return model, copy.deepcopy(model).requires_grad_(False) if with_copy else None

    def wrap(self, model: nn.Module, *, has_unused: bool = False) -> nn.Module:
        """Wrap a model in DDP; buffers are left to `RunningStatistics`."""
        parameters = inspect.signature(DistributedDataParallel).parameters
        new_name = "forward_sync_buffers"  # torch 2.14 warns of the old one
        no_sync: dict[str, Any] = {
            new_name if new_name in parameters else "broadcast_buffers": False
        }
        wrapped = DistributedDataParallel(
            model,
            bucket_cap_mb=self._config.bucket_cap_mb,
            gradient_as_bucket_view=True,
            find_unused_parameters=has_unused,
            **no_sync,
        )
        if self._comm_hook == "bf16_compress":
            compress_to_bf16(wrapped)
        elif self._comm_hook == "powersgd":
            self._powersgd = PowerSgd(wrapped, self._config)
        return wrapped

    @property
    def needs_warm_up(self) -> bool:
        """True from three ranks up: DDP regroups its buckets, and the sum of two has one order.

        PowerSGD remembers by bucket, so their regrouping comes first on any number of ranks.
        """
        return self.world.size > 2 or self._comm_hook == "powersgd"

    def prepare_step(self, step: int) -> None:
        if self._powersgd is not None:
            self._powersgd.prepare_step(step)

    def accumulate(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return the context of passes that send nothing: the last sends the sum."""
        return cast("DistributedDataParallel", wrapped).no_sync()

    def clip_gradients(self, model: nn.Module, recipe: Recipe) -> Tensor:
        parameters = [*model.parameters()]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_grad_norm or math.inf)
        if recipe.agc_clip_factor:  # not the head's: Brock et al. 2021, section 4.1
            adaptive_clip_grad(parameters[:-2], recipe.agc_clip_factor)  # type: ignore[no-untyped-call]
        return norm

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def scatter(self, tensor: Tensor, whole: Tensor | None) -> None:
        if whole is not None:
            tensor.copy_(whole)
        self.world.broadcast([tensor])

    def gather_optimizer_state(self, optimizer: Optimizer) -> Iterator[tuple[int, ParamState]]:
        return iter(optimizer.state_dict()["state"].items())

    def scatter_param_state(
        self, index: int, meta: ParamState, whole: ParamState | None
    ) -> ParamState | None:
        device = self.world.device
        state = empty_like_meta(meta, device) if whole is None else clone_to(whole, device)
        for tensor in large_tensors(state):
            self.world.broadcast([tensor])
        return state
