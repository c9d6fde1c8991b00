"""The learning rate is a function of the step, with its corners where the config puts them."""

import dataclasses
from typing import Any

import pytest
import torch
from plans import plan
from torch import nn

from orchestrator.schema import Recipe
from orchestrator.training.schedule import make_schedule

PLAN = plan()


def rates(recipe: Recipe, steps: list[int], **schedule: Any) -> list[float]:
    changes = dataclasses.replace(recipe.schedule, **schedule)
    slots = dataclasses.replace(recipe.optimizer, lr=1.0)
    recipe = dataclasses.replace(recipe, schedule=changes, optimizer=slots)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make_schedule(optimizer, recipe, PLAN)
    found = []
    for step in steps:
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step"])
def test_any_step_can_be_asked_for_in_any_order(recipe: Recipe, name: str) -> None:
    options = {"name": name, "warmup_epochs": 1.0, "drop_epochs": (3.0, 6.0)}
    forwards = rates(recipe, list(range(100)), **options)
    backwards = rates(recipe, list(range(99, -1, -1)), **options)
    assert forwards == backwards[::-1]


def test_warm_up_is_a_line_to_the_full_rate(recipe: Recipe) -> None:
    found = rates(recipe, [0, 5, 10], name="constant", warmup_epochs=1.0)
    assert found == pytest.approx([0.1, 0.55, 1.0])


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_decay_ends_at_the_final_share(recipe: Recipe, name: str, middle: float) -> None:
    found = rates(recipe, [0, 50, 100], name=name, warmup_epochs=0.0, final_share=0.1)
    assert found == pytest.approx([1.0, middle, 0.1])


def test_a_line_goes_up_to_the_highest_rate_and_down_from_there(recipe: Recipe) -> None:
    """FFCV's np.interp(epoch, [0, 2, epochs], [about 0, lr, 0])."""
    found = rates(recipe, [0, 10, 20, 60, 100], name="linear", warmup_epochs=2.0)
    assert found == pytest.approx([0.05, 0.525, 1.0, 0.5, 0.0])


def test_drops_come_with_their_epoch(recipe: Recipe) -> None:
    options = {"name": "step", "warmup_epochs": 0.0, "drop_epochs": (3.0, 6.0), "drop_factor": 0.1}
    found = rates(recipe, [0, 29, 30, 59, 60, 99], **options)
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_drops_at_equal_intervals(recipe: Recipe) -> None:
    options = {"name": "step", "warmup_epochs": 0.0, "drop_every_epochs": 2.4, "drop_factor": 0.5}
    found = rates(recipe, [0, 23, 24, 47, 48, 71, 72, 99], **options)
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.0625])
