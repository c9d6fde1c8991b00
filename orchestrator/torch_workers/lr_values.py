"""The learning rates of steps, for what is before the launch: see launch.extend_schedule.

python -m orchestrator.torch_workers.lr_values < request.json
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.config.parse import parse
from orchestrator.run.plan import Plan
from orchestrator.torch_workers.entry import json_entry_point
from orchestrator.training.optim.lr_schedule import make_lr_schedule


def rates(
    configs: Mapping[str, Mapping[str, Any]],
    plans: Mapping[str, Mapping[str, Any]],
    steps: Sequence[int],
) -> dict[str, list[float]]:
    """Return the rates that each of several configs gives to the same steps, counted from 0."""
    found: dict[str, list[float]] = {}
    for name, values in configs.items():
        recipe = parse(values).recipe
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=recipe.optimizer.lr)
        schedule = make_lr_schedule(optimizer, recipe, Plan(**plans[name]))
        found[name] = []
        for step in steps:
            schedule.step_update(step)
            found[name].append(float(optimizer.param_groups[0]["lr"]))
    return found


if __name__ == "__main__":
    sys.exit(json_entry_point(rates))
