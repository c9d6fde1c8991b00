"""The learning rate is a function of the step, with its corners where the config puts them."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from plans import plan
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import lr_scheduler

from orchestrator.config.recipe import Recipe
from orchestrator.training.optim.lr_schedule import make_lr_schedule

PLAN = plan()


def rates(
    recipe: Recipe, steps: list[int], num_steps: int = PLAN.num_steps, **schedule: Any
) -> list[float]:
    changes = dataclasses.replace(recipe.schedule, **schedule)
    slots = dataclasses.replace(recipe.optimizer, lr=1.0)
    recipe = dataclasses.replace(recipe, schedule=changes, optimizer=slots)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make_lr_schedule(optimizer, recipe, dataclasses.replace(PLAN, num_steps=num_steps))
    found = []
    for step in steps:
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "multistep"])
def test_rate_depends_on_the_step_alone(recipe: Recipe, name: str) -> None:
    options = {"name": name, "warmup_epochs": 1.0, "decay_milestones": (3.0, 6.0)}
    forwards = rates(recipe, list(range(100)), **options)
    backwards = rates(recipe, list(range(99, -1, -1)), **options)
    assert forwards == backwards[::-1]


def test_warm_up_is_linear(recipe: Recipe) -> None:
    found = rates(recipe, [0, 5, 10], name="constant", warmup_epochs=1.0)
    assert found == pytest.approx([0.1, 0.55, 1.0])


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_decay_ends_at_min_lr_factor(recipe: Recipe, name: str, middle: float) -> None:
    found = rates(recipe, [0, 50, 100], name=name, warmup_epochs=0.0, min_lr_factor=0.1)
    assert found == pytest.approx([1.0, middle, 0.1])


def test_linear_schedule_decays_after_the_warm_up(recipe: Recipe) -> None:
    """FFCV's np.interp(epoch, [0, 2, epochs], [about 0, lr, 0])."""
    found = rates(recipe, [0, 10, 20, 60, 100], name="linear", warmup_epochs=2.0)
    assert found == pytest.approx([0.05, 0.525, 1.0, 0.5, 0.0])


def test_decay_milestones(recipe: Recipe) -> None:
    options = {
        "name": "multistep",
        "warmup_epochs": 0.0,
        "decay_milestones": (3.0, 6.0),
        "decay_rate": 0.1,
    }
    found = rates(recipe, [0, 29, 30, 59, 60, 99], **options)
    assert found == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_decay_every_epochs(recipe: Recipe) -> None:
    options = {
        "name": "multistep",
        "warmup_epochs": 0.0,
        "decay_every_epochs": 2.4,
        "decay_rate": 0.5,
    }
    found = rates(recipe, [0, 23, 24, 47, 48, 71, 72, 99], **options)
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.0625])


STEPS, WARMUP = 100, 20  # of PLAN, and two epochs of it


def theirs(make: Any, **options: Any) -> list[float]:
    """Return the rates of timm's scheduler after a warm-up of two epochs."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler: Scheduler = make(optimizer, warmup_t=WARMUP, t_in_epochs=False, **options)
    found = []
    for step in range(WARMUP, STEPS):
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def ours(recipe: Recipe, **schedule: Any) -> list[float]:
    return rates(recipe, list(range(WARMUP, STEPS)), warmup_epochs=2.0, **schedule)


def test_milestones_count_from_the_start_of_training(recipe: Recipe) -> None:
    """EfficientNet's: 0.97 times as much every 2.4 epochs, counted from the first step."""
    expected = theirs(StepLRScheduler, decay_t=24, decay_rate=0.97, warmup_prefix=False)
    found = ours(recipe, name="multistep", decay_every_epochs=2.4, decay_rate=0.97)
    assert found == pytest.approx(expected)
    found = ours(recipe, name="multistep", decay_milestones=(3.0, 6.0), decay_rate=0.1)
    assert [found[step - WARMUP] for step in (29, 30, 59, 60)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_milestones_after_the_warm_up_with_warmup_prefix(recipe: Recipe) -> None:
    expected = theirs(StepLRScheduler, decay_t=24, decay_rate=0.97, warmup_prefix=True)
    found = ours(
        recipe, name="multistep", decay_every_epochs=2.4, decay_rate=0.97, warmup_prefix=True
    )
    assert found == pytest.approx(expected)


def test_cosine_equals_deits(recipe: Recipe) -> None:
    expected = theirs(CosineLRScheduler, t_initial=STEPS, lr_min=0.01)
    assert ours(recipe, name="cosine", min_lr_factor=0.01) == pytest.approx(expected)


def test_cosine_with_warmup_prefix_equals_swins(recipe: Recipe) -> None:
    """Swin's lr_scheduler.py, with the WARMUP_PREFIX of its config.py."""
    expected = theirs(CosineLRScheduler, t_initial=STEPS - WARMUP, lr_min=0.01, warmup_prefix=True)
    found = ours(recipe, name="cosine", min_lr_factor=0.01, warmup_prefix=True)
    assert found == pytest.approx(expected)


def test_cosine_with_warmup_prefix_equals_beits(recipe: Recipe) -> None:
    """The cosine of BEiT's utils.py, which ConvNeXt and EVA-02 took over; ViT's and MAE's too."""
    count = STEPS - WARMUP
    expected = [0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * i / count)) for i in range(count)]
    found = ours(recipe, name="cosine", min_lr_factor=0.05, warmup_prefix=True)
    assert found == pytest.approx(expected)


def test_cosine_with_warmup_prefix_equals_torchvisions(recipe: Recipe) -> None:
    """SequentialLR in torchvision's references/classification/train.py."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    parts = [
        lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=WARMUP),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - WARMUP),
    ]
    scheduler = lr_scheduler.SequentialLR(optimizer, parts, milestones=[WARMUP])
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    found = ours(recipe, name="cosine", warmup_prefix=True)
    assert found == pytest.approx(expected[WARMUP:])


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_cycles_each_fall_from_the_highest_rate_to_the_last(recipe: Recipe, name: str) -> None:
    options = {"name": name, "warmup_epochs": 1.0, "min_lr_factor": 0.1}
    cycles = ((0, 100), (100, 140), (160, 170))
    found = rates(recipe, list(range(200)), num_steps=200, cycles=cycles, **options)
    assert found[:100] == rates(recipe, list(range(100)), **options)
    cold = options | {"warmup_epochs": 0.0}
    assert found[100:140] == rates(recipe, list(range(40)), num_steps=40, **cold)
    assert found[160:170] == rates(recipe, list(range(10)), num_steps=10, **cold)
    assert found[140:160] == found[170:190] == pytest.approx([0.1] * 20)


@pytest.mark.parametrize("name", ["constant", "multistep"])
def test_rates_that_do_not_depend_on_the_end_have_no_cycles(recipe: Recipe, name: str) -> None:
    steps, options = list(range(100)), {"name": name, "decay_milestones": (3.0,)}
    assert rates(recipe, steps, cycles=((0, 50),), **options) == rates(recipe, steps, **options)
