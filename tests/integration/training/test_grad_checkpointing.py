"""Activation checkpointing on several ranks: all that a checkpoint holds keeps its bits."""

import copy
from dataclasses import replace

import pytest
import torch
from plans import plan
from ranks import run_on_ranks

import models
from data_sharding.loading.loader import Batch
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.train_step import TrainStep
from orchestrator.training.task.grad_checkpointing import enable_grad_checkpointing
from orchestrator.training.task.losses import make_objective

PLAN = plan(world_size=2, global_batch_size=16, num_lanes=4, num_micro_batches=4)


def train(world: World, config: Config) -> TrainState:
    """Train a small network for three steps, of two micro-batches on each rank."""
    device = Device.create(config, world.device)
    torch.manual_seed(0)
    model = models.build("resnet9_2018", num_classes=10, width=0.125)
    if config.recipe.grad_checkpointing:
        enable_grad_checkpointing(model)
    model.to(memory_format=device.memory_format)  # type: ignore[call-overload]
    state = TrainState.create(model, config, world)
    task = make_objective(config.recipe)
    step = TrainStep(state, task, config, PLAN, device, world)
    for number in range(3):
        batches = [micro_batch(number, micro) for micro in PLAN.micro_batches_of(world.rank)]
        step.forward_backward(number, device.prefetch_to_device(iter(batches)))
        state.strategy.clip_gradients(state.model, config.recipe)
        state.update()
        state.update_ema(number + 1, 0.9)
    return state


def micro_batch(step: int, micro: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * step + micro)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (4,), generator=generator)
    return Batch(images, labels, torch.arange(4), torch.ones(4, dtype=torch.bool), [])


def compare(world: World, config: Config) -> None:
    optimizer = replace(config.recipe.optimizer, name="adamw", lr=0.001)
    recipe = replace(config.recipe, optimizer=optimizer, ema_decay=0.9)
    plain = train(world, replace(config, recipe=recipe))
    for strategy in ("ddp", "ddp_zero1"):
        saving = replace(recipe, grad_checkpointing=True)
        state = train(world, replace(config, recipe=saving, strategy=strategy))
        for ours, theirs in ((state.model, plain.model), (state.ema, plain.ema)):
            assert ours is not None
            assert theirs is not None
            expected = copy.deepcopy(theirs.state_dict())
            for name, value in ours.state_dict().items():
                assert torch.equal(value, expected[name]), (strategy, name)


@pytest.mark.slow
def test_two_ranks_keep_their_bits_under_either_strategy(config: Config) -> None:
    run_on_ranks(compare, 2, config)
