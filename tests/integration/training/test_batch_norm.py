"""Batch norm's running statistics do not depend on the number of ranks."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from cli_runner import Tahoe
from ranks import run_on_ranks
from run_results import figures
from torch import Tensor, nn

from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir
from orchestrator.training.distributed.batch_norm import RunningStatistics
from orchestrator.training.distributed.world import World

NUM_STEPS, NUM_MICROS = 3, 4


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


def begun() -> Norms:
    network = Norms()
    for number, buffer in enumerate(network.buffers()):
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(number)))
    network.never.running_var[0] = torch.inf
    return network


def micro_batch(step: int, micro: int) -> Tensor:
    generator = torch.Generator().manual_seed(step * NUM_MICROS + micro)
    return torch.randn(5, 3, generator=generator) * 3 + step + micro


def look(world: World, config: Config) -> None:
    expected, ours, num_mine = begun(), begun(), NUM_MICROS // world.size
    statistics = RunningStatistics(ours, world)
    for step in range(NUM_STEPS):
        for micro in range(NUM_MICROS):
            expected(micro_batch(step, micro), step)
        with statistics.synchronized():
            for micro in range(world.rank * num_mine, (world.rank + 1) * num_mine):
                ours(micro_batch(step, micro), step)
        reference, actual = expected.state_dict(), copy.deepcopy(ours.state_dict())
        reference["last"] = micro_batch(step, num_mine - 1)[:2]  # rank 0's
        for name, value in actual.items():
            torch.testing.assert_close(value, reference[name], msg=lambda m, n=name: f"{n}: {m}")
        for theirs in world.gather_objects(actual):
            assert all(torch.equal(theirs[name], value) for name, value in actual.items())


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_running_statistics_equal_those_of_one_rank(config: Config, num_ranks: int) -> None:
    run_on_ranks(look, num_ranks, config)


RESNET = (
    "model=timm",
    "model.name=timm/resnet18",
    "recipe.global_batch_size=64",
    "recipe.optimizer.lr=0.02",
    "recipe.ema_decay=0.99",
    "evaluate.every_epochs=0.25",
)


@pytest.mark.slow
def test_evaluate_reproduces_the_logged_metrics(train: Callable[..., RunDir], tahoe: Tahoe) -> None:
    """With averages on two ranks."""
    run = train("averaged", *RESNET, "recipe.steps=8", "launcher.nproc_per_node=2")
    logged = figures(run, "val/loss", "val/top1")
    for step in (6, 8):
        output = tahoe("evaluate", "averaged", "--step", str(step), "--json").stdout
        (metrics,) = json.loads(output)["runs"].values()
        assert metrics["loss"] == pytest.approx(logged[step, "val/loss"].pop(), abs=1e-6)
        assert metrics["top1"] == pytest.approx(logged[step, "val/top1"].pop(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_validation_loss_is_the_same_on_any_number_of_ranks(
    train: Callable[..., RunDir],
) -> None:
    """From the first evaluation on, which is before rounding has grown."""
    losses = []
    for num_ranks in (1, 2, 4):
        run = train(
            f"on-{num_ranks}", *RESNET, "recipe.steps=5", f"launcher.nproc_per_node={num_ranks}"
        )
        losses.append(figures(run, "val/loss")[5, "val/loss"].pop())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 3))])
def test_ema_is_at_least_as_accurate_as_raw_weights(
    tahoe: Tahoe, train: Callable[..., RunDir], seed: int
) -> None:
    """While the rate is still high, which is what averages are for."""
    network = ("model=resnet9_2018", "+model.kwargs.width=0.125", "recipe=resnet9_2018")
    batches = ("recipe.global_batch_size=32", "recipe.num_micro_batches=2", "recipe.epochs=2")
    rate = ("recipe.schedule.name=constant", "recipe.schedule.warmup_epochs=0.5")
    train(
        "run",
        *network,
        *batches,
        *rate,
        "recipe.optimizer.lr=0.1",
        "recipe.ema_decay=0.95",
        f"seed={seed}",
    )
    top1 = {
        weights: json.loads(tahoe("evaluate", "run", "--weights", weights, "--json").stdout)
        for weights in ("ema", "raw")
    }
    averaged, raw = (
        next(iter(top1[weights]["runs"].values()))["top1"] for weights in ("ema", "raw")
    )
    assert averaged >= raw
