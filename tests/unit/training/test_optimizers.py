"""The velocity of 2012 against its formula; biases at their own rate under any schedule."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import zero_ranks
from plans import plan
from torch import nn
from torch.testing import assert_close

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Recipe
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.optim.factory import make_optimizer
from orchestrator.training.optim.lr_schedule import make_lr_schedule
from orchestrator.training.state.host_snapshot import HostSnapshot
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState

PLAN = plan(num_steps=30)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def changed(recipe: Recipe, **values: Any) -> Recipe:
    slots = dataclasses.replace(recipe.optimizer, **values)
    schedule = dataclasses.replace(
        recipe.schedule,
        name="multistep",
        warmup_epochs=0.0,
        decay_milestones=(1.0,),
        decay_rate=0.1,
    )
    return dataclasses.replace(recipe, optimizer=slots, schedule=schedule)


@pytest.mark.parametrize("share", [1.0, 2.0])
@pytest.mark.parametrize("decays", [True, False])
def test_caffe_sgd_follows_krizhevskys_rule(recipe: Recipe, share: float, *, decays: bool) -> None:
    wanted = changed(
        recipe, name="caffe_sgd", lr=0.1, momentum=0.9, weight_decay=0.01,
        bias_lr_scale=share, decay_norm_and_bias=decays,
    )  # fmt: skip
    plain = network()
    optimizer = make_optimizer(plain, wanted.optimizer)
    schedule = make_lr_schedule(optimizer, wanted, PLAN)
    expected = {name: p.detach().clone() for name, p in plain.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(20):
        lr = 0.1 if step < 10 else 0.01
        schedule.step_update(step)
        for name, parameter in plain.named_parameters():
            parameter.grad = torch.sin(parameter.detach() * 7 + step)
            is_bias, is_weight = name.endswith("bias"), parameter.ndim > 1
            decay = 0.01 if is_weight or decays else 0.0
            rate = lr * share if is_bias else lr
            gradient = torch.sin(expected[name] * 7 + step) + decay * expected[name]
            velocity[name] = 0.9 * velocity[name] - rate * gradient
            expected[name] = expected[name] + velocity[name]
        optimizer.step()
    for name, parameter in plain.named_parameters():
        assert_close(parameter.detach(), expected[name], rtol=1e-4, atol=1e-5)


def test_caffe_sgd_equals_torchs_until_the_rate_drops(recipe: Recipe) -> None:
    ours, theirs = network(), network()
    wanted = changed(recipe, name="caffe_sgd", lr=0.1, momentum=0.9, weight_decay=0.01)
    mine = make_optimizer(ours, wanted.optimizer)
    other = make_optimizer(theirs, changed(recipe, name="momentum", lr=0.1, momentum=0.9,
                                           weight_decay=0.01).optimizer)  # fmt: skip

    def step() -> None:
        for plain, optimizer in ((ours, mine), (theirs, other)):
            for parameter in plain.parameters():
                parameter.grad = torch.cos(parameter.detach())
            optimizer.step()

    for _ in range(5):
        step()
    assert_close(list(ours.parameters()), list(theirs.parameters()))
    for optimizer in (mine, other):
        for group in optimizer.param_groups:
            group["lr"] = 0.001
    step()
    moved = (ours[0].weight - theirs[0].weight).abs().max().item()
    assert moved > 0.01  # at the old rate still


def test_bias_lr_scale_works_with_timms_optimizers(recipe: Recipe) -> None:
    wanted = changed(recipe, name="momentum", lr=0.1, bias_lr_scale=2.0, weight_decay=0.01)
    optimizer = make_optimizer(network(), wanted.optimizer)
    schedule = make_lr_schedule(optimizer, wanted, PLAN)
    for step, lr in ((0, 0.1), (15, 0.01)):
        schedule.step_update(step)
        found = sorted(
            (len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups
        )
        expected = [(1, lr, 0.0), (2, lr, 0.01), (3, 2 * lr, 0.0)]  # norm, weights, biases
        assert_close(torch.tensor(found), torch.tensor(expected))


@pytest.mark.parametrize(
    ("values", "value", "token"),
    [
        ({"name": "caffe_sgd", "kwargs": {"nesterov": True}}, {"nesterov": True}, "caffe_sgd"),
        ({"name": "sgd", "kwargs": {"lr": 1.0}}, {"lr": 1.0}, "sgd"),
        ({"bias_lr_scale": 2.0, "layer_decay": 0.7}, 2.0, "layer_decay"),
        ({"name": "caffe_sgd", "layer_decay": 0.7}, 0.7, "layer_decay"),
        ({"name": "cafe_sgd"}, "cafe_sgd", "caffe_sgd"),
    ],
)
def test_options_that_make_no_optimizer_are_refused(
    recipe: Recipe, values: dict[str, Any], value: object, token: str
) -> None:
    with pytest.raises(ConfigError, match=token) as error:
        make_optimizer(network(), changed(recipe, **values).optimizer)
    assert error.value.value == value


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("strategy", ["ddp", "ddp_zero1"])
def test_fused_optimizers_skip_infinite_gradients(
    config: Config, world: World, name: str, strategy: str
) -> None:
    optimizer = dataclasses.replace(config.recipe.optimizer, name=name, kwargs={"fused": True})
    recipe = dataclasses.replace(config.recipe, optimizer=optimizer, precision="fp16")
    fused = dataclasses.replace(config, recipe=recipe).replace({"strategy.name": strategy})
    state = TrainState.create(network(), fused, world)
    assert state.optimizer.param_groups[0]["fused"]
    for value, moves in ((math.inf, False), (1.0, True)):
        before = [p.detach().clone() for p in state.model.parameters()]
        scaled = value * state.scaler.scale(torch.ones(()))
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter) * scaled
        state.scaler.unscale_(state.optimizer)
        state.update()
        pairs = zip(before, state.model.parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs) == moves


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_continue_in_channels_last(
    config: Config, world: World, name: str, tmp_path: Path
) -> None:
    """Their kernels go through memory, in which a file's tensors lie in another order."""
    fused = zero_ranks.with_optimizer(config, name, "ddp", fused=True)
    straight, resumed = (
        TrainState.create(zero_ranks.make_network(), fused, world) for _ in range(2)
    )
    zero_ranks.step_on(straight, 1, 2)
    store = CheckpointStore(str(tmp_path))
    store.save(2, HostSnapshot().capture(straight, 2), {})
    with store.open(2) as files:
        restore(resumed, files, world)
    for state in (straight, resumed):
        zero_ranks.step_on(state, 3, 4)
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_optimizers_without_a_fused_form_refuse(recipe: Recipe) -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer(network(), changed(recipe, name="lamb", kwargs={"fused": True}).optimizer)
    assert error.value.value == {"fused": True}
