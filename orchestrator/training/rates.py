"""The learning rates of steps, for what is before the launch: see launch.extend.

python -m orchestrator.training.rates < request.json
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.config import parse
from orchestrator.plan import Plan
from orchestrator.training.answer import answer
from orchestrator.training.schedule import make_schedule


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
        schedule = make_schedule(optimizer, recipe, Plan(**plans[name]))
        found[name] = []
        for step in steps:
            schedule.step_update(step)
            found[name].append(float(optimizer.param_groups[0]["lr"]))
    return found


if __name__ == "__main__":
    sys.exit(answer(rates))
