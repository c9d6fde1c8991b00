"""Activation checkpointing changes the memory of a step, and none of its bits."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from plans import plan
from torch import Tensor, nn

import models
from data_sharding.loading.loader import Batch
from orchestrator.config.parse import ConfigError, config_hash
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.device import Device
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.train_step import TrainStep
from orchestrator.training.task.grad_checkpointing import enable_grad_checkpointing
from orchestrator.training.task.linear_probe import freeze_backbone
from orchestrator.training.task.losses import make_objective
from orchestrator.training.task.model import build_model

NUM_MICROS, MICRO = 2, 4


class Odd(nn.Module):
    """A network of a user's: blocks with two inputs, dropout, a stage, and counters of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = 0
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList(Counting() for _ in range(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, scale=2.0) if self.stage else block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.dropout = nn.BatchNorm2d(8, momentum=None), nn.Dropout(0.3)
        self.register_buffer("replaced", torch.zeros(1))
        self.register_buffer("counted", torch.zeros(1))
        self.counted: Tensor

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.replaced = self.replaced + 1  # another tensor each time
        self.counted += 1
        return x + scale * self.dropout(self.second(torch.relu(self.norm(self.first(x)))))


NETWORKS = {
    "timm/test_resnet": {},
    "timm/test_vit": {"drop_path_rate": 0.5, "img_size": 32},
    "torchvision/shufflenet_v2_x0_5": {},
    "googlenet_2014": {"image_size": 112, "width": 0.1},  # with auxiliary heads
}


def step_of(network: nn.Module, config: Config, world: World, **recipe: object) -> None:
    """Compute the gradients of a step of two micro-batches."""
    config = replace(config, recipe=replace(config.recipe, **recipe))  # type: ignore[arg-type]
    shape = plan(
        global_batch_size=NUM_MICROS * MICRO, num_lanes=NUM_MICROS, num_micro_batches=NUM_MICROS
    )
    device = Device.create(config, torch.device("cpu"))
    task = make_objective(config.recipe)
    network.to(memory_format=device.memory_format)  # type: ignore[call-overload]
    state = TrainState.create(network, config, world)
    step = TrainStep(state, task, config, shape, device, world)
    size = 112 if hasattr(network, "aux") else 32
    step.forward_backward(3, device.prefetch_to_device(batches(size)))


def batches(size: int) -> Iterator[Batch]:
    for micro in range(NUM_MICROS):
        generator = torch.Generator().manual_seed(micro)
        shape = (MICRO, 3, size, size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (MICRO,), generator=generator)
        ids = torch.arange(MICRO)
        yield Batch(images, labels, ids, torch.ones(MICRO, dtype=torch.bool), [])


@pytest.mark.parametrize("name", ["own", *NETWORKS])
def test_bits_and_buffers_are_those_without(config: Config, world: World, name: str) -> None:
    torch.manual_seed(0)
    plain = Odd() if name == "own" else models.build(name, num_classes=10, **NETWORKS[name])
    plain.stage = 1  # type: ignore[assignment]
    network = copy.deepcopy(plain)
    enable_grad_checkpointing(network)
    precision = "fp32" if name == "timm/test_resnet" else "bf16"
    step_of(plain, config, world, precision=precision)
    step_of(network, config, world, precision=precision, grad_checkpointing=True)
    expected, found = plain.state_dict(), network.state_dict()
    assert [*expected] == [*found]
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    for (key, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None, key
        assert theirs.grad is not None, key
        assert torch.equal(ours.grad, theirs.grad), key


def test_blocks_are_computed_twice_in_training_and_once_elsewhere() -> None:
    network = Odd()
    enable_grad_checkpointing(network)
    average = copy.deepcopy(network).requires_grad_(False)  # whose blocks are its own
    with torch.no_grad():
        network(torch.randn(2, 3, 8, 8))
        assert network.blocks[0].counted.item() == 1
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    assert network.blocks[0].counted.item() == 3
    assert average.blocks[0].counted.item() == 0
    average(torch.randn(2, 3, 8, 8))
    assert average.blocks[0].counted.item() == 1
    assert network.blocks[0].counted.item() == 3


def test_linear_probe_trains_the_same_head(config: Config, world: World) -> None:
    torch.manual_seed(0)
    plain = models.build("torchvision/shufflenet_v2_x0_5", num_classes=10)
    network = copy.deepcopy(plain)
    enable_grad_checkpointing(network)
    for model, is_checkpointed in ((plain, False), (network, True)):
        freeze_backbone(model, 10)
        step_of(model, config, world, grad_checkpointing=is_checkpointed)
    assert torch.equal(network.fc.weight.grad, plain.fc.weight.grad)


@pytest.mark.parametrize("name", ["lenet5_1998", "timm/vgg11"])
def test_networks_without_blocks_are_refused(config: Config, name: str) -> None:
    model = replace(config.model, name=name)
    saving = replace(config, recipe=replace(config.recipe, grad_checkpointing=True), model=model)
    with torch.device("meta"), pytest.raises(ConfigError, match="grad_checkpointing"):
        build_model(saving, num_classes=10)


def test_it_is_the_same_run_with_and_without(config: Config) -> None:
    saving = replace(config, recipe=replace(config.recipe, grad_checkpointing=True))
    assert config_hash(saving) == config_hash(config)
