"""Activation checkpointing on several ranks: all that a checkpoint holds keeps its bits."""

from dataclasses import replace

import pytest
import torch
from plans import plan
from ranks import run_on_ranks
from torch.distributed.tensor import DTensor

import models
from data_sharding.loading.loader import Batch
from orchestrator.config.schema import Config
from orchestrator.run.plan import Plan
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.train_step import TrainStep
from orchestrator.training.task.grad_checkpointing import enable_grad_checkpointing
from orchestrator.training.task.losses import make_objective

TWO_EACH = plan(world_size=2, global_batch_size=16, num_lanes=4, num_micro_batches=4)
SHARED = plan(world_size=2, global_batch_size=16, num_lanes=1, num_micro_batches=1)


def train(world: World, config: Config, steps: Plan) -> TrainState:
    """Train a small network for three steps."""
    device = Device.create(config, world.device)
    torch.manual_seed(0)
    model = models.build("resnet9_2018", num_classes=10, in_channels=1, width=0.125)
    if config.recipe.grad_checkpointing:
        enable_grad_checkpointing(model)
    model.to(memory_format=device.memory_format)  # type: ignore[call-overload]
    state = TrainState.create(model, config, world)
    task = make_objective(config.recipe)
    step = TrainStep(state, task, config, steps, device, world)
    for number in range(3):
        micros = steps.micro_batches_of(world.rank)
        seeds = [100 * number + 10 * micro + world.rank for micro in micros]
        batches = [micro_batch(seed, steps.images_per_pass) for seed in seeds]
        step.forward_backward(number, device.prefetch_to_device(iter(batches)))
        state.strategy.clip_gradients(state.model, config.recipe)
        state.update()
        state.update_ema(number + 1, 0.9)
    return state


def micro_batch(seed: int, num_images: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, 1, 32, 32)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (num_images,), generator=generator)
    readable = torch.ones(num_images, dtype=torch.bool)
    return Batch(images, labels, torch.arange(num_images), readable, [])


def compare(world: World, config: Config) -> None:
    """Compare with DDP, and FSDP2, which adds in another order, with itself."""
    optimizer = replace(config.recipe.optimizer, name="adamw", lr=0.001)
    recipe = replace(config.recipe, optimizer=optimizer, ema_decay=0.9)
    saving = replace(recipe, grad_checkpointing=True)
    for steps in (TWO_EACH, SHARED):
        plain = train(world, replace(config, recipe=recipe), steps)
        for strategy in ("ddp", "ddp_zero1", "fsdp2"):
            changed = config.replace({"strategy.name": strategy})
            if strategy == "fsdp2":
                plain = train(world, replace(changed, recipe=recipe), steps)
            state = train(world, replace(changed, recipe=saving), steps)
            for ours, theirs in zip(state.models, plain.models, strict=True):
                expected = theirs.state_dict()
                for name, value in ours.state_dict().items():
                    assert torch.equal(local(value), local(expected[name])), (strategy, name)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@pytest.mark.slow
def test_two_ranks_keep_their_bits_under_any_strategy(config: Config) -> None:
    run_on_ranks(compare, 2, config)
