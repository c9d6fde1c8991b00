"""Runs evaluate alike on any number of ranks, since running statistics do not depend on it."""

import json
from collections.abc import Callable

import pytest
from cli_runner import Tahoe
from run_results import figures

from orchestrator.run.rundir import RunDir

RESNET = (
    "model=timm",
    "model.name=timm/resnet18",
    "recipe.global_batch_size=64",
    "recipe.num_micro_batches=4",
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
@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, 2, 3])
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
