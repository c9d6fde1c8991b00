"""One step's gradients, against plain torch: the mean over the global batch, sent once."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from plans import plan
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F

from data_sharding.loading.loader import Batch
from data_sharding.rng import derive_key
from data_sharding.sampling.sample_order import Part
from orchestrator.config.recipe import Recipe
from orchestrator.config.schema import Config
from orchestrator.config.strategy import Strategy
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.train_step import TrainStep, noise_seed
from orchestrator.training.strategy.ddp import Ddp
from orchestrator.training.task.losses import make_objective

NUM_MICROS, MICRO = 4, 8
PLAN = plan(
    global_batch_size=NUM_MICROS * MICRO, num_lanes=NUM_MICROS, num_micro_batches=NUM_MICROS
)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(1024, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def batches() -> list[Batch]:
    made = []
    for micro in range(NUM_MICROS):
        generator = torch.Generator().manual_seed(micro)
        images = torch.randint(0, 256, (MICRO, 1, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (MICRO,), generator=generator)
        ids = torch.arange(MICRO)
        made.append(Batch(images, labels, ids, torch.ones(MICRO, dtype=torch.bool), []))
    return made


@pytest.fixture(scope="module")
def ddp() -> Ddp:
    world = World(0, 0, 1, torch.device("cpu"), dist.group.WORLD)  # no group: it sends nothing
    return Ddp(world, Strategy())


def fed(config: Config) -> Iterator[Batch]:
    return Device.create(config, torch.device("cpu")).prefetch_to_device(iter(batches()))


def gradient_step(config: Config, plain: nn.Module, world: World) -> TrainStep:
    device = Device.create(config, torch.device("cpu"))
    objective = make_objective(config.recipe)
    state = TrainState.create(plain, config, world)
    return TrainStep(state, objective, config, PLAN, device, world)


def gradients_of(plain: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in plain.parameters() if p.grad is not None]


def test_accumulated_gradients_equal_those_of_the_whole_batch(world: World, config: Config) -> None:
    plain, reference = network(), network()
    step = gradient_step(config, plain, world)
    step.warm_up()
    learned = step.forward_backward(0, fed(config))

    images = torch.cat([batch.images for batch in batches()]).float() / 255
    images = (images - config.data.mean[0]) / config.data.std[0]
    labels = torch.cat([batch.labels for batch in batches()])
    expected = F.cross_entropy(reference(images), labels)
    expected.backward()
    assert learned["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    likeliest = network()(images).argsort(dim=1, descending=True)
    for top in (1, 5):
        right = (likeliest[:, :top] == labels[:, None]).any(dim=1).float().mean()
        assert learned[f"train/top{top}"].item() == pytest.approx(100 * right.item())
    for ours, theirs in zip(gradients_of(plain), gradients_of(reference), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_step_communicates_once_however_many_micro_batches(world: World, config: Config) -> None:
    step = gradient_step(config, network(), world)
    num_buckets = 0

    def count(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal num_buckets
        num_buckets += 1
        return allreduce_hook(group, bucket)

    wrapped: Any = step.wrapped
    wrapped.register_comm_hook(None, count)
    step.forward_backward(0, fed(config))
    assert num_buckets == 1


def test_dropout_depends_on_step_and_micro_batch_only(world: World, config: Config) -> None:
    """However the generator stood, and whatever was computed before, the same dropout comes."""
    found = []
    for disturbance in (1, 2):
        plain = network(dropout=0.5)
        step = gradient_step(config, plain, world)
        torch.manual_seed(disturbance)
        step.forward_backward(5, fed(config))
        found.append(gradients_of(plain))
    again = network(dropout=0.5)
    gradient_step(config, again, world).forward_backward(6, fed(config))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], gradients_of(again), strict=True))


def test_warm_up_leaves_the_model_unchanged(world: World, config: Config) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 10))
    plain = plain.to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    gradient_step(config, plain, world).warm_up()
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
    assert not gradients_of(plain)


@given(seed=st.integers(0, 1000), factor=st.floats(0.001, 0.1))
def test_adaptive_clipping_bounds_each_unit_by_its_weights(
    recipe: Recipe, ddp: Ddp, seed: int, factor: float
) -> None:
    torch.manual_seed(seed)
    plain = network()
    for parameter in plain.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.rand(()).exp()
    before = gradients_of(plain)
    norm = ddp.clip_gradients(plain, replace(recipe, agc_clip_factor=factor))
    after = gradients_of(plain)

    assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item())
    weights, bias, *_ = plain.parameters()
    for unit in range(len(weights)):
        bound = factor * max(weights[unit].norm().item(), 1e-3)
        expected = before[0][unit] * min(1.0, bound / before[0][unit].norm().item())
        assert torch.allclose(after[0][unit], expected, rtol=1e-4)
    assert after[1].norm() == pytest.approx(factor * bias.norm().item(), rel=1e-4)
    assert all(torch.equal(*pair) for pair in zip(before[2:], after[2:], strict=True))  # the head


def test_clipping_by_global_norm(recipe: Recipe, ddp: Ddp) -> None:
    plain = network()
    for parameter in plain.parameters():
        parameter.grad = torch.ones_like(parameter)
    ddp.clip_gradients(plain, replace(recipe, clip_grad_norm=2.0))
    assert torch.cat([g.flatten() for g in gradients_of(plain)]).norm() == pytest.approx(
        2.0, rel=1e-3
    )


def test_the_time_of_a_step_has_its_parts(world: World, config: Config) -> None:
    """Four micro-batches, each waited for and each computed longer than the rest takes."""

    class Slow(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return images

    def late() -> Iterator[Batch]:
        for batch in fed(config):
            time.sleep(0.01)
            yield batch

    step = gradient_step(config, nn.Sequential(Slow(), network()), world)
    for number in range(3):
        step.forward_backward(number, late())
    times, num_steps = step.timer.pop()
    assert num_steps == 2  # the first, which compiles, is left out
    assert times.data_wait_s >= 2 * 4 * 0.01
    assert times.busy_s - times.data_wait_s >= 2 * 4 * 0.02
    assert 0 < times.reduce_s < 2 * 4 * 0.01  # one rank waits for no other
    assert step.timer.pop() == ((0.0, 0.0, 0.0), 0)


def test_noise_is_another_for_each_step_micro_batch_and_part() -> None:
    counters = [(step, micro, index) for step in range(5) for micro in range(5) for index in (0, 1)]
    seeds = {noise_seed(0, step, micro, Part(index, 2)) for step, micro, index in counters}
    whole = {noise_seed(0, step, micro, Part()) for step in range(5) for micro in range(5)}
    assert len(seeds | whole) == len(counters) + 25
    assert noise_seed(7, 3, 2, Part()) == derive_key(7, "noise", 3, 2)[0]  # as it always was
