"""The learning rate as a function of the step, by timm's schedulers.

timm's `step_update(step)` sets the rate from the 0-based step alone: no state to save or replay.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler

from orchestrator.config.recipe import Recipe
from orchestrator.run.plan import Plan


def make_lr_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, plan: Plan) -> Scheduler:
    """Create the scheduler, whose `step_update(step)` sets the learning rate of a step.

    The highest rate is the optimizer's; `min_lr_factor` of it is reached at the last step, or at
    the last step of each cycle.
    """
    warmup_steps = round(recipe.schedule.warmup_epochs * plan.steps_per_epoch)
    cycles = recipe.schedule.cycles
    if not (cycles and recipe.schedule.ends_with_training):
        return _make_cycle(optimizer, recipe, plan, warmup_steps)
    schedules = []
    for start, end in cycles:
        cycle = replace(plan, num_steps=end - start)
        warmup = 0 if start else warmup_steps
        schedules.append((start, _make_cycle(optimizer, recipe, cycle, warmup)))
    return _Cycles(optimizer, schedules)


class _Cycles(Scheduler):
    """A sequence of schedules, each with the step it starts at."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, cycles: Sequence[tuple[int, Scheduler]]
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self._cycles = cycles

    def _get_lr(self, t: int) -> list[float]:
        start, cycle = [(start, cycle) for start, cycle in self._cycles if start <= t][-1]
        rates: list[float] = cycle._get_lr(t - start)
        return rates


def _make_cycle(
    optimizer: torch.optim.Optimizer, recipe: Recipe, plan: Plan, warmup_steps: int
) -> Scheduler:
    """Create a schedule that decays once, over `plan.num_steps`."""
    schedule, lr = recipe.schedule, recipe.optimizer.lr
    prefix = schedule.warmup_prefix
    if prefix is None:
        prefix = schedule.name == "linear"
    warmup: dict[str, Any] = {
        "warmup_t": warmup_steps,
        "warmup_lr_init": lr / max(1, warmup_steps),
        "warmup_prefix": prefix,
        "t_in_epochs": False,
    }
    decay_steps = max(1, plan.num_steps - (warmup_steps if prefix else 0))
    final_lr = lr * schedule.min_lr_factor
    match schedule.name:
        case "cosine":
            return CosineLRScheduler(optimizer, decay_steps, lr_min=final_lr, **warmup)
        case "linear":
            return PolyLRScheduler(optimizer, decay_steps, power=1, lr_min=final_lr, **warmup)
        case "multistep":
            # timm decays one step before the given one (timm 1.0, multistep_lr.py)
            epochs = schedule.decay_milestones or _milestones(schedule.decay_every_epochs, plan)
            steps = [round(epoch * plan.steps_per_epoch) + 1 for epoch in epochs]
            rate = schedule.decay_rate
            return MultiStepLRScheduler(optimizer, steps, decay_rate=rate, **warmup)
        case "constant":
            return MultiStepLRScheduler(optimizer, [], **warmup)


def _milestones(every_epochs: float | None, plan: Plan) -> list[float]:
    """List the multiples of a number of epochs up to the end of training."""
    if every_epochs is None:
        return []
    count = int(plan.num_steps / plan.steps_per_epoch / every_epochs)
    return [number * every_epochs for number in range(1, count + 1)]
