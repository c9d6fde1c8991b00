"""The training state: weights, averaged weights (EMA), optimizer state, loss scaler.

With the number of steps done this is all that a checkpoint holds: data order, augmentation, noise
and learning rate follow from (config, seed, step).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.strategy.make import make_strategy
from orchestrator.training.strategy.strategy import Strategy
from orchestrator.training.task.warm_start import load_initial_weights


@dataclass
class TrainState:
    """The tensors of a run. `model` is the plain module, without DDP or compile around it."""

    model: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    strategy: Strategy

    @classmethod
    def create(cls, model: nn.Module, config: Config, world: World) -> Self:
        """Create the state at step 0 around a model, which is moved to this rank's device."""
        recipe, strategy = config.recipe, make_strategy(config, world)
        model, ema = strategy.place(model, with_copy=bool(recipe.ema_decay))
        optimizer = make_optimizer(model, recipe.optimizer)
        strategy.attach(optimizer)
        scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")
        return cls(model, ema, optimizer, scaler, strategy)

    def initialise(self, path: Path, num_classes: int, in_channels: int) -> None:
        """Load the weights of a safetensors file into the model and the EMA."""
        with self.strategy.accepting_whole_tensors():
            load_initial_weights(self.model, path, num_classes, in_channels)
        if self.ema is not None:
            self.ema.load_state_dict(self.model.state_dict())

    def update(self) -> None:
        """Step the optimizer, unless the loss scaler has found infinite gradients; clear them."""
        with self.strategy.stepping():
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
    def models(self) -> list[nn.Module]:
        """The model, and the EMA if there is one."""
        return [self.model] if self.ema is None else [self.model, self.ema]

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated: the EMA if there is one."""
        return self.models[-1]

    @torch.no_grad()
    def update_ema(self, num_done: int, decay: float) -> None:
        """Move the averaged weights towards the current ones, after `num_done` steps.

        Statistics of batch norm are averaged like the weights, or they would not fit them. Integer
        buffers, and those that no checkpoint holds, are copied. timm's ModelEmaV3 does the same.

        The decay rises as (1 + num_done) / (10 + num_done), so that a short run is not dominated by
        its initial weights (tf.train.ExponentialMovingAverage, num_updates).
        """
        assert self.ema is not None
        averages = [self.strategy.local(weight) for weight in self.ema.parameters()]
        currents = [self.strategy.local(weight) for weight in self.model.parameters()]
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
