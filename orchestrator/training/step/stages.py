"""Stages of a training, as intervals of steps: a network that is pretrained layer by layer.

A network with stages has an attribute `stage`, which its `forward` goes by, and may have a method
`enter(stage)` for what is to be done once when a stage begins. That is done before the first step
of the stage, so what a checkpoint holds and the step say all. For other networks there are
intervals of one and the same stage, whose rates alone differ.
"""

from typing import Any

import torch
from torch import nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Phase
from orchestrator.run.plan import Plan
from orchestrator.training.state.train_state import TrainState


class Phases:
    """Sets the stage, and what goes with it, of a step."""

    def __init__(self, state: TrainState, stages: tuple[Phase, ...], plan: Plan) -> None:
        self._state, self._stages = state, stages
        self._ends = [round(stage.end_epoch * plan.steps_per_epoch) for stage in stages]
        if len({stage.stage for stage in stages}) > 1 and not supports_phases(state.network):
            raise ConfigError(
                "recipe.phases: this network has none, so that all would be one. Set them to [], "
                "or take a network that is trained in stages, such as autoencoder_2006."
            )

        has_momentum = all("momentum" in group for group in state.optimizer.param_groups)
        if any(stage.momentum is not None for stage in stages) and not has_momentum:
            raise ConfigError(
                "recipe.phases: they have a momentum, and this optimizer has none. Leave it out of "
                "them, or set recipe.optimizer.name=momentum."
            )

    def prepare_step(self, step: int) -> None:
        """Prepare the state for a step, counted from 0; the schedule has set the rates of it."""
        if not self._stages:
            return
        stage, network = self.phase_at(step), self._state.network
        self.set_phase(step)
        if (step == 0 or self.phase_at(step - 1).stage != stage.stage) and hasattr(
            network, "enter"
        ):
            with torch.no_grad():
                network.enter(stage.stage)  # type: ignore[operator]  # a method of this network
        for group in self._state.optimizer.param_groups:
            group["lr"] *= stage.lr_scale
            if stage.momentum is not None:
                group["momentum"] = stage.momentum

    def set_phase(self, step: int) -> None:
        """Let the networks be what they are in a step."""
        if self._stages and supports_phases(self._state.network):
            networks: list[Any] = [self._state.network, self._state.ema]
            for network in networks:
                if isinstance(network, nn.Module):
                    network.stage = self.phase_at(step).stage  # type: ignore[assignment]

    def phase_at(self, step: int) -> Phase:
        """Return the stage that a step belongs to; the last has no end."""
        for stage, end in zip(self._stages, self._ends, strict=True):
            if step < end:
                return stage
        return self._stages[-1]


def supports_phases(network: nn.Module) -> bool:
    """Whether a network is one that is trained in stages."""
    return hasattr(network, "stage")
