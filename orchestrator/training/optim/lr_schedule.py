"""The learning rate as a function of the step, by timm's schedulers.

timm's `step_update(t)` sets the rate from t alone, so there is nothing to save or to replay.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

import torch
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
)
from timm.scheduler.scheduler import Scheduler

from orchestrator.config.recipe import Recipe
from orchestrator.run.plan import Plan


class _Warmup(TypedDict):
    warmup_t: int
    warmup_lr_init: float
    warmup_prefix: bool
    t_in_epochs: bool


def make_lr_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, plan: Plan) -> Scheduler:
    """Return a scheduler whose `step_update(step)` sets the learning rate of that step.

    The highest rate is the optimizer's; `min_lr_factor` of it is reached at the last step, or at
    the last step of each cycle.
    """
    warmup_steps = round(recipe.schedule.warmup_epochs * plan.steps_per_epoch)
    cycles = recipe.schedule.cycles
    if not (cycles and recipe.schedule.ends_with_training):
        return _cycle(optimizer, recipe, plan, warmup_steps)
    made = []
    for start, end in cycles:
        part = replace(plan, num_steps=end - start)
        made.append((start, _cycle(optimizer, recipe, part, 0 if start else warmup_steps)))
    return _Cycles(optimizer, made)


class _Cycles(Scheduler):
    """One schedule after the other, each from its own step on."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, cycles: Sequence[tuple[int, Scheduler]]
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self._cycles = cycles

    def _get_lr(self, t: int) -> list[float]:
        start, cycle = [one for one in self._cycles if one[0] <= t][-1]
        rates: list[float] = cycle._get_lr(t - start)
        return rates


def _cycle(
    optimizer: torch.optim.Optimizer, recipe: Recipe, plan: Plan, warmup_steps: int
) -> Scheduler:
    """Return a schedule that falls once, over as many steps as the plan has."""
    schedule, lr = recipe.schedule, recipe.optimizer.lr
    is_linear = schedule.name == "linear"
    prefix = is_linear if schedule.warmup_prefix is None else schedule.warmup_prefix
    warmup = _Warmup(
        warmup_t=warmup_steps,
        warmup_lr_init=lr / max(1, warmup_steps),
        warmup_prefix=prefix,
        t_in_epochs=False,
    )
    decay_steps = max(1, plan.num_steps - (warmup_steps if prefix else 0))
    final_lr = lr * schedule.min_lr_factor
    match schedule.name:
        case "cosine":
            return CosineLRScheduler(optimizer, decay_steps, lr_min=final_lr, **warmup)
        case "linear":
            return PolyLRScheduler(optimizer, decay_steps, power=1, lr_min=final_lr, **warmup)
        case "multistep":
            # timm drops at the step before the one it is given (timm 1.0, multistep_lr.py)
            epochs = schedule.decay_milestones or _milestones_every(
                schedule.decay_every_epochs, plan
            )
            drops = [round(epoch * plan.steps_per_epoch) + 1 for epoch in epochs]
            factor = schedule.decay_rate
            return MultiStepLRScheduler(optimizer, drops, decay_rate=factor, **warmup)
        case "constant":
            return MultiStepLRScheduler(optimizer, [], **warmup)


def _milestones_every(every_epochs: float | None, plan: Plan) -> list[float]:
    """Return the multiples of a number of epochs that lie inside a run."""
    if every_epochs is None:
        return []
    count = int(plan.num_steps / plan.steps_per_epoch / every_epochs)
    return [number * every_epochs for number in range(1, count + 1)]
