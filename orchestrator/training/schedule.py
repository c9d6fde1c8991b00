"""The learning rate as a function of the step, by timm's schedulers.

timm's `step_update(t)` sets the rate from t alone, so there is nothing to save or to replay.
"""

from typing import TypedDict

import torch
from timm.scheduler import (
    CosineLRScheduler,
    MultiStepLRScheduler,
    PolyLRScheduler,
)
from timm.scheduler.scheduler import Scheduler

from orchestrator.plan import Plan
from orchestrator.schema import Recipe


class _Warmup(TypedDict):
    warmup_t: int
    warmup_lr_init: float
    warmup_prefix: bool
    t_in_epochs: bool


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, plan: Plan) -> Scheduler:
    """Return a scheduler whose `step_update(step)` sets the learning rate of that step.

    The highest rate is the optimizer's; `final_share` of it is reached at the last step.
    """
    schedule, lr = recipe.schedule, recipe.optimizer.lr
    warmup_steps = round(schedule.warmup_epochs * plan.steps_per_epoch)
    is_linear = schedule.name == "linear"
    prefix = is_linear if schedule.warmup_prefix is None else schedule.warmup_prefix
    warmup = _Warmup(
        warmup_t=warmup_steps,
        warmup_lr_init=lr / max(1, warmup_steps),
        warmup_prefix=prefix,
        t_in_epochs=False,
    )
    decay_steps = max(1, plan.num_steps - (warmup_steps if prefix else 0))
    final_lr = lr * schedule.final_share
    match schedule.name:
        case "cosine":
            return CosineLRScheduler(optimizer, decay_steps, lr_min=final_lr, **warmup)
        case "linear":
            return PolyLRScheduler(optimizer, decay_steps, power=1, lr_min=final_lr, **warmup)
        case "step":
            # timm drops at the step before the one it is given (timm 1.0, multistep_lr.py)
            epochs = schedule.drop_epochs or _each(schedule.drop_every_epochs, plan)
            drops = [round(epoch * plan.steps_per_epoch) + 1 for epoch in epochs]
            factor = schedule.drop_factor
            return MultiStepLRScheduler(optimizer, drops, decay_rate=factor, **warmup)
        case "constant":
            return MultiStepLRScheduler(optimizer, [], **warmup)


def _each(every_epochs: float | None, plan: Plan) -> list[float]:
    """Return the multiples of a number of epochs that lie inside a run."""
    if every_epochs is None:
        return []
    count = int(plan.num_steps / plan.steps_per_epoch / every_epochs)
    return [number * every_epochs for number in range(1, count + 1)]
