"""The learning rates of steps, for `launch.extend_schedule`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.config.parse import parse
from orchestrator.run.plan import Plan
from orchestrator.torch_workers.entry import json_entry_point
from orchestrator.training.optim.lr_schedule import make_lr_schedule


def learning_rates(
    configs: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
    steps: Sequence[int],
) -> dict[str, list[float]]:
    """Compute the rates of each of several configs at the same steps, counted from 0."""
    rates: dict[str, list[float]] = {}
    for name, values in configs.items():
        recipe = parse(values).recipe
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=recipe.optimizer.lr)
        schedule = make_lr_schedule(optimizer, recipe, Plan(**plans[name]))
        rates[name] = []
        for step in steps:
            schedule.step_update(step)
            rates[name].append(float(optimizer.param_groups[0]["lr"]))
    return rates


if __name__ == "__main__":
    sys.exit(json_entry_point(learning_rates))
