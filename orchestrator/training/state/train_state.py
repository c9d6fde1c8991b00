"""What a run carries from step to step: weights, averaged weights, optimizer slots, loss scaler.

With the step itself this is all there is: the order, the views, the noise and the learning rate
follow from (config, seed, step). So these, and one integer, are what a checkpoint holds.
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.distributed.zero import ParamState, ZeroOptimizer
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.task.warm_start import load_initial_weights


@dataclass
class TrainState:
    """The tensors of a run. `network` is the plain module, without DDP or compile around it."""

    network: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    zero: ZeroOptimizer | None = None

    @classmethod
    def create(cls, network: nn.Module, config: Config, world: World) -> Self:
        """Return the state at step 0.

        Raises:
            ConfigError: the optimizer's name or options are not timm's, or not for this strategy.
        """
        recipe = config.recipe
        optimizer = make_optimizer(network, recipe.optimizer)
        is_spread = config.strategy == "ddp_zero1"
        return cls(
            network=network,
            ema=copy.deepcopy(network).requires_grad_(False) if recipe.ema_decay else None,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16"),
            zero=ZeroOptimizer(optimizer, world) if is_spread else None,
        )

    def initialise(self, path: Path, num_classes: int, in_channels: int) -> None:
        """Begin with the weights of a safetensors file, the averaged ones too.

        Raises:
            ConfigError: they are of another network.
        """
        load_initial_weights(self.network, path, num_classes, in_channels)
        if self.ema is not None:
            self.ema.load_state_dict(self.network.state_dict())

    def update(self) -> None:
        """Move the weights by their gradients, unless the loss scaler has found some infinite."""
        with self.zero.step() if self.zero else nullcontext():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if hasattr(self.network, "after_step"):  # what a paper does to its weights, ZFNet's for one
            self.network.after_step()  # type: ignore[operator]
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """The learning rate, without the shares of it that layers and biases have."""
        groups = self.optimizer.param_groups
        return max(float(group["lr"] / group.get("lr_scale", 1)) for group in groups)

    @property
    def eval_model(self) -> nn.Module:
        """The weights that are judged: the averaged ones where there are any."""
        return self.network if self.ema is None else self.ema

    @torch.no_grad()
    def update_ema(self, step: int, decay: float) -> None:
        """Move the averaged weights towards the current ones; call after step `step`.

        What batch norm knows of its inputs lags behind as the weights do: statistics of other
        weights would not fit them. Counts, and what no checkpoint holds, are the current ones.
        timm's ModelEmaV3 does the same.

        The decay rises as (1 + step) / (10 + step) so that a short run is not dominated by its
        initial weights (tf.train.ExponentialMovingAverage, num_updates).
        """
        assert self.ema is not None
        averaged: list[torch.Tensor] = [*self.ema.parameters()]
        current: list[torch.Tensor] = [*self.network.parameters()]
        buffers = zip(self.ema.named_buffers(), self.network.buffers(), strict=True)
        for (name, ours), theirs in buffers:
            if name in self._kept and theirs.is_floating_point():
                averaged.append(ours)
                current.append(theirs)
            else:
                ours.copy_(theirs)
        move = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
        move(averaged, current, step)

    @cached_property
    def _kept(self) -> frozenset[str]:
        """The names of what a checkpoint holds of the network."""
        return frozenset(self.network.state_dict())

    def iter_optimizer_state(self) -> Iterator[tuple[int, ParamState]]:
        """Yield what the optimizer keeps, by the number of the parameter.

        All of it on rank 0. Where it is spread, all ranks must go through this.
        """
        mine = self.optimizer.state_dict()["state"]
        return iter(mine.items()) if self.zero is None else self.zero.gather(mine)
