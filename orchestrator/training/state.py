"""What a run carries from step to step: weights, averaged weights, optimizer slots, loss scaler.

With the step itself this is all there is: the order, the views, the noise and the learning rate
follow from (config, seed, step). So these, and one integer, are what a checkpoint holds.
"""

import copy
import difflib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Self

import torch
from safetensors import SafetensorError
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from orchestrator.config import ConfigError
from orchestrator.schema import Optimizer, Recipe
from orchestrator.training.checkpoint import CheckpointError
from orchestrator.training.safetensors_file import read_safetensors

# What torch and safetensors raise for names, shapes or bytes that they did not expect. A file that
# holds more than tensors is an UnpicklingError: nothing in it is run (weights_only=True).
_UNFIT = (KeyError, RuntimeError, ValueError, UnpicklingError, SafetensorError)


@dataclass
class TrainState:
    """The tensors of a run. `network` is the plain module, without DDP or compile around it."""

    network: nn.Module
    ema: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @classmethod
    def create(cls, network: nn.Module, recipe: Recipe, device: torch.device) -> Self:
        """Return the state at step 0.

        Raises:
            ConfigError: the optimizer's name or options are not timm's.
        """
        return cls(
            network=network,
            ema=copy.deepcopy(network).requires_grad_(False) if recipe.ema_decay else None,
            optimizer=_make_optimizer(network, recipe.optimizer),
            scaler=torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
        )

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are judged: the averaged ones where there are any."""
        return self.network if self.ema is None else self.ema

    @torch.no_grad()
    def average(self, step: int, decay: float) -> None:
        """Move the averaged weights towards the current ones; call after step `step`.

        The decay rises as (1 + step) / (10 + step) so that a short run is not dominated by its
        initial weights (tf.train.ExponentialMovingAverage, num_updates).
        """
        assert self.ema is not None
        average = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
        average(list(self.ema.parameters()), list(self.network.parameters()), step)
        for ours, theirs in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            ours.copy_(theirs)

    def load_parts(self, parts: Mapping[str, bytes]) -> int:
        """Take over a checkpoint's state and return its step.

        Raises:
            CheckpointError: the files do not fit this model or recipe.
        """
        state = json.loads(parts["state.json"])
        try:
            read_safetensors(self.network, parts["model.safetensors"])
            if self.ema is not None:
                read_safetensors(self.ema, parts["ema.safetensors"])
            slots = torch.load(
                io.BytesIO(parts["optimizer.pt"]), weights_only=True, map_location="cpu"
            )
            self.optimizer.load_state_dict(slots)
        except _UNFIT as error:
            raise CheckpointError(
                f"the checkpoint of step {state['step']} does not fit the model and recipe of this "
                f"run: {error}"
            ) from error
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        return int(state["step"])


def _make_optimizer(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    if optimizer.name not in list_optimizers():
        known = [str(name) for name in list_optimizers()]
        near = difflib.get_close_matches(optimizer.name, known) or ["sgd", "adamw"]
        raise ConfigError(
            f"recipe.optimizer.name={optimizer.name} is no optimizer of timm. Near names: "
            f"{', '.join(near)}. All: python -c 'import timm; print(timm.optim.list_optimizers())'"
        )
    try:
        return create_optimizer_v2(
            network,
            opt=optimizer.name,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            filter_bias_and_bn=not optimizer.decay_norm_and_bias,
            **optimizer.options,
        )
    except TypeError as error:
        raise ConfigError(
            f"recipe.optimizer.options={optimizer.options} do not fit {optimizer.name}: {error}"
        ) from error
