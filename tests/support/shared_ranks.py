"""What each rank does in the tests of micro-batches that ranks share."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from plans import plan
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from orchestrator.config.recipe import Mixup
from orchestrator.config.schema import Config
from orchestrator.training.distributed.batch_norm import RunningStatistics
from orchestrator.training.distributed.micro_batch_group import MicroBatchGroup
from orchestrator.training.distributed.shared_batch_norm import share_batch_norm
from orchestrator.training.distributed.world import World
from orchestrator.training.task.mixup import MixupCutmix

NUM_ROWS, NUM_CHANNELS = 24, 3
Layer = Callable[[], nn.Module]
LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "rows": (lambda: nn.BatchNorm1d(NUM_CHANNELS), ()),
    "1d": (lambda: nn.BatchNorm1d(NUM_CHANNELS), (5,)),
    "2d": (lambda: nn.BatchNorm2d(NUM_CHANNELS, eps=0.1), (4, 3)),
    "3d": (lambda: nn.BatchNorm3d(NUM_CHANNELS, momentum=0.7), (2, 3, 2)),
    "cumulative": (lambda: nn.BatchNorm2d(NUM_CHANNELS, momentum=None), (2, 2)),
    "not affine": (lambda: nn.BatchNorm2d(NUM_CHANNELS, affine=False), (2, 2)),
    "not tracked": (lambda: nn.BatchNorm2d(NUM_CHANNELS, track_running_stats=False), (2, 2)),
    "timm's": (lambda: BatchNormAct2d(NUM_CHANNELS, act_layer=nn.SiLU), (4, 4)),
    "two": (lambda: nn.Sequential(nn.BatchNorm1d(NUM_CHANNELS), _Cube(), Norm(NUM_CHANNELS)), ()),
}


class _Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


class Norm(nn.BatchNorm1d):
    """A batch norm as a user writes one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


def group_of(world: World, num_micro_batches: int) -> MicroBatchGroup:
    sizes = plan(world_size=world.size, num_micro_batches=num_micro_batches)
    return MicroBatchGroup.create(sizes, world, timeout_s=60)


def layers_equal_whole_ones(world: World, config: Config) -> None:
    """Outputs, gradients and statistics of parts are those of the whole, to float64's rounding."""
    group = group_of(world, 1)
    for name, (make, shape) in LAYERS.items():
        whole = make().double()
        for number, tensor in enumerate(whole.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(1 + _draw(number, *tensor.shape).abs())
        parts = copy.deepcopy(whole)
        share_batch_norm(parts, group)
        assert parts.state_dict().keys() == whole.state_dict().keys()
        copied = copy.deepcopy(parts)  # an EMA
        for step in range(2):
            _compare(world, group, name, (whole, parts), (NUM_ROWS, NUM_CHANNELS, *shape), step)
        copied.load_state_dict(whole.state_dict())
        rows = _draw(9, world.rank + 1, NUM_CHANNELS, *shape)
        assert torch.equal(copied.eval()(rows), whole.eval()(rows)), name  # each rank for itself


def _compare(
    world: World,
    group: MicroBatchGroup,
    name: str,
    layers: tuple[nn.Module, nn.Module],
    shape: tuple[int, ...],
    step: int,
) -> None:
    # A mean that is large beside the deviations, and differs from part to part.
    images = 1000 + _draw(step, *shape) + torch.arange(shape[0]).view(-1, *(1 for _ in shape[1:]))
    coefficients = _draw(step + 10, *shape)
    mine = group.part.rows(shape[0])
    found = []
    for layer, rows in zip(layers, (slice(None), mine), strict=True):
        x = images[rows].clone().requires_grad_()
        y = layer(x)
        layer.zero_grad()
        (y * coefficients[rows]).sum().backward()
        assert x.grad is not None
        found.append((y.detach(), x.grad))
    (y, grad), (y_part, grad_part) = found
    for actual, expected in ((y_part, y[mine]), (grad_part, grad[mine])):
        torch.testing.assert_close(actual, expected, msg=lambda m: f"{name}: {m}")
    for ours, theirs in zip(*(layer.parameters() for layer in reversed(layers)), strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(world.sum(ours.grad), theirs.grad, msg=lambda m: f"{name}: {m}")
    for ours, theirs in zip(*(layer.buffers() for layer in reversed(layers)), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m: f"{name}: {m}")


def half_precision_and_large_means(world: World, config: Config) -> None:
    """Statistics of float32 survive large means, and those of bfloat16 are kept in float32."""
    group = group_of(world, 1)
    for dtype, mean in ((torch.float32, 1e4), (torch.bfloat16, 0.0)):
        images = (mean + _draw(0, NUM_ROWS, NUM_CHANNELS, 2, 2)).to(dtype)
        whole, parts = nn.BatchNorm2d(NUM_CHANNELS), nn.BatchNorm2d(NUM_CHANNELS)
        share_batch_norm(parts, group)
        x = images[group.part.rows(NUM_ROWS)].to(memory_format=torch.channels_last).requires_grad_()
        y = parts(x)
        y.float().square().sum().backward()
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert x.grad is not None
        assert y.dtype == x.grad.dtype == dtype
        whole(images.float())
        assert parts.running_var is not None
        torch.testing.assert_close(parts.running_var, whole.running_var, rtol=1e-4, atol=0)


def mixes_as_whole(world: World, config: Config) -> None:
    """Each part gets its rows of the mixed micro-batch, bit for bit."""
    recipe = Mixup(mixup_alpha=0.4, cutmix_alpha=1.0, prob=0.8)
    group = group_of(world, 1)
    images = _draw(1, 2 * world.size, 3, 6, 6).float().to(memory_format=torch.channels_last)
    single, mine = torch.arange(len(images)) % 5, group.part.rows(len(images))
    several = (_draw(2, len(images), 5) > 0).float()
    for labels, expected_kinds in ((single, {1, 2}), (several, {2})):
        kinds = set()
        for step in range(8):
            whole = MixupCutmix(recipe, 5, 3)(images, labels, step, 0)
            part = MixupCutmix(recipe, 5, 3, group)(images[mine], labels[mine], step, 0)
            for ours, theirs in zip(part, whole, strict=True):
                assert torch.equal(ours, theirs[mine])
            assert part[0].is_contiguous(memory_format=torch.channels_last)
            kinds.add(part[1].ndim)
        assert kinds == expected_kinds


class Norms(nn.Module):
    """Every way in which a batch norm may count, and a statistic of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.usual = nn.BatchNorm1d(3)
        self.cumulative = nn.BatchNorm1d(3, momentum=None)
        self.forgetful = nn.BatchNorm1d(3, momentum=1.0)
        self.twice = nn.BatchNorm1d(3, momentum=0.3)
        self.in_step_one = nn.BatchNorm1d(3)
        self.never = nn.BatchNorm1d(3, momentum=None)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.without = nn.BatchNorm1d(3, track_running_stats=False)
        self.register_buffer("last", torch.zeros(2, 3))

    def forward(self, x: Tensor, step: int) -> None:
        for norm in (self.usual, self.cumulative, self.forgetful, self.twice, self.frozen):
            norm(x)
        self.twice(2 * x + 1)
        self.without(x)
        if step == 1:
            self.in_step_one(x)
        self.last = x[:2].clone()  # as one writes it: another tensor each time


def _begun() -> Norms:
    network = Norms()
    for number, buffer in enumerate(network.buffers()):
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(number)))
    network.never.running_var[0] = torch.inf
    return network


def running_statistics_equal_those_of_one_rank(world: World, config: Config) -> None:
    """Of four micro-batches, and of fewer than there are ranks."""
    for num_micros in {4, world.size // 2, 1}:
        _compare_running_statistics(world, num_micros)


def _compare_running_statistics(world: World, num_micros: int) -> None:
    sizes = plan(world_size=world.size, num_micro_batches=num_micros)
    group, micros = group_of(world, num_micros), sizes.micro_batches_of(world.rank)
    expected, ours = _begun(), _begun()
    if group.is_shared:
        share_batch_norm(ours, group)
    statistics = RunningStatistics(ours, world, group.part)
    for step in range(3):
        for micro in range(num_micros):
            expected(_micro_batch(step, micro), step)
        with statistics.synchronized():
            for micro in micros:
                rows = _micro_batch(step, micro)
                ours(rows[group.part.rows(len(rows))], step)
        reference, actual = expected.state_dict(), copy.deepcopy(ours.state_dict())
        reference["last"] = _micro_batch(step, sizes.accumulation_steps - 1)[:2]  # rank 0's
        for name, value in actual.items():
            torch.testing.assert_close(value, reference[name], msg=lambda m, n=name: f"{n}: {m}")
        for theirs in world.gather_objects(actual):
            assert all(torch.equal(theirs[name], value) for name, value in actual.items())


def _micro_batch(step: int, micro: int) -> Tensor:
    generator = torch.Generator().manual_seed(4 * step + micro)
    return torch.randn(16, 3, generator=generator) * 3 + step + micro


def all_at_once(world: World, config: Config) -> None:
    layers_equal_whole_ones(world, config)
    half_precision_and_large_means(world, config)
    mixes_as_whole(world, config)
    running_statistics_equal_those_of_one_rank(world, config)


def _draw(seed: int, *shape: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)
