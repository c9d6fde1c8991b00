"""Phases of training as intervals of steps, e.g. pretraining layer by layer.

A model that is trained in stages has an attribute `stage`, which its `forward` reads, and may have
a method `enter(stage)`, called once before the first step of a stage. So a checkpoint and the step
determine everything. For other models a phase sets the learning rate and the momentum only.
"""

from typing import Any

import torch
from torch import nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Phase
from orchestrator.run.plan import Plan
from orchestrator.training.state.train_state import TrainState


class Phases:
    """Sets the stage of the model, and the rate and momentum of the optimizer, for a step."""

    def __init__(self, state: TrainState, phases: tuple[Phase, ...], plan: Plan) -> None:
        self._state, self._phases = state, phases
        self._ends = [round(phase.end_epoch * plan.steps_per_epoch) for phase in phases]
        if len({phase.stage for phase in phases}) > 1 and not supports_phases(state.model):
            raise ConfigError(
                "recipe.phases has several stages, and this model has none, so all phases would "
                "be equal",
                value=phases,
                hint="Set recipe.phases=[], or take a model that is trained in stages, such as "
                "autoencoder_2006.",
            )
        has_momentum = all("momentum" in group for group in state.optimizer.param_groups)
        if any(phase.momentum is not None for phase in phases) and not has_momentum:
            raise ConfigError(
                "recipe.phases sets a momentum, and this optimizer has none",
                value=phases,
                hint="Leave `momentum` out of the phases, or set recipe.optimizer.name=momentum.",
            )

    def prepare_step(self, step: int) -> None:
        """Prepare model and optimizer for a step (0-based), after the schedule has set its rate."""
        if not self._phases:
            return
        phase, model = self.phase_at(step), self._state.model
        self.set_phase(step)
        is_new = step == 0 or self.phase_at(step - 1).stage != phase.stage
        if is_new and hasattr(model, "enter"):
            with torch.no_grad():
                model.enter(phase.stage)  # type: ignore[operator]  # a method of this model
        for group in self._state.optimizer.param_groups:
            group["lr"] *= phase.lr_scale
            if phase.momentum is not None:
                group["momentum"] = phase.momentum

    def set_phase(self, step: int) -> None:
        """Set the stage of the model and its EMA for a step (0-based)."""
        if self._phases and supports_phases(self._state.model):
            models: list[Any] = [self._state.model, self._state.ema]
            for model in models:
                if model is not None:
                    model.stage = self.phase_at(step).stage

    def phase_at(self, step: int) -> Phase:
        """Find the phase of a step; the last has no end."""
        for phase, end in zip(self._phases, self._ends, strict=True):
            if step < end:
                return phase
        return self._phases[-1]


def supports_phases(model: nn.Module) -> bool:
    """Check whether a model is one that is trained in stages."""
    return hasattr(model, "stage")
