"""The training state: weights, averaged weights (EMA), optimizer state, loss scaler.

With the number of steps done this is all that a checkpoint holds: data order, augmentation, noise
and learning rate follow from (config, seed, step).
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
    """The tensors of a run. `model` is the plain module, without DDP or compile around it."""

    model: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    zero: ZeroOptimizer | None = None

    @classmethod
    def create(cls, model: nn.Module, config: Config, world: World) -> Self:
        """Create the state at step 0 around a model."""
        recipe = config.recipe
        optimizer = make_optimizer(model, recipe.optimizer)
        return cls(
            model=model,
            ema=copy.deepcopy(model).requires_grad_(False) if recipe.ema_decay else None,
            optimizer=optimizer,
            scaler=torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16"),
            zero=ZeroOptimizer(optimizer, world) if config.strategy == "ddp_zero1" else None,
        )

    def initialise(self, path: Path, num_classes: int, in_channels: int) -> None:
        """Load the weights of a safetensors file into the model and the EMA."""
        load_initial_weights(self.model, path, num_classes, in_channels)
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())

    def update(self) -> None:
        """Step the optimizer, unless the loss scaler has found infinite gradients; clear them."""
        with self.zero.step() if self.zero else nullcontext():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if hasattr(self.model, "after_step"):  # a paper's own constraint on weights, e.g. ZFNet's
            self.model.after_step()  # type: ignore[operator]
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def lr(self) -> float:
        """The learning rate, before the scale factors of layers and biases."""
        groups = self.optimizer.param_groups
        return max(float(group["lr"] / group.get("lr_scale", 1)) for group in groups)

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated: the EMA if there is one."""
        return self.model if self.ema is None else self.ema

    @torch.no_grad()
    def update_ema(self, num_done: int, decay: float) -> None:
        """Move the averaged weights towards the current ones, after `num_done` steps.

        Statistics of batch norm are averaged like the weights, or they would not fit them. Integer
        buffers, and those that no checkpoint holds, are copied. timm's ModelEmaV3 does the same.

        The decay rises as (1 + num_done) / (10 + num_done), so that a short run is not dominated by
        its initial weights (tf.train.ExponentialMovingAverage, num_updates).
        """
        assert self.ema is not None
        averages: list[torch.Tensor] = [*self.ema.parameters()]
        currents: list[torch.Tensor] = [*self.model.parameters()]
        buffers = zip(self.ema.named_buffers(), self.model.buffers(), strict=True)
        for (name, average), current in buffers:
            if name in self._saved_names and current.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        update = get_ema_multi_avg_fn(min(decay, (1 + num_done) / (10 + num_done)))
        update(averages, currents, num_done)

    @cached_property
    def _saved_names(self) -> frozenset[str]:
        return frozenset(self.model.state_dict())

    def iter_optimizer_state(self) -> Iterator[tuple[int, ParamState]]:
        """Yield the optimizer's state by the index of the parameter; complete on rank 0.

        With ZeRO a collective: every rank must exhaust the iterator.
        """
        local = self.optimizer.state_dict()["state"]
        return iter(local.items()) if self.zero is None else self.zero.gather(local)
