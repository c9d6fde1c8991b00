"""Ranks that share a micro-batch compute what one rank computes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import shared_ranks
from rank_runs import train_on_worlds
from ranks import run_on_ranks
from run_results import figures, global_batches, weights

from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir

RunOn = Callable[..., RunDir]


@pytest.mark.parametrize(
    "num_ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))]
)
def test_batch_norm_and_mixing_see_the_whole_micro_batch(config: Config, num_ranks: int) -> None:
    run_on_ranks(shared_ranks.all_at_once, num_ranks, config)


NUM_STEPS = 20
RUN = (
    "data=digits",
    "model=smooth_network:build",
    f"recipe.steps={NUM_STEPS}",
    *("recipe.global_batch_size=64", "recipe.num_micro_batches=2", "data.num_lanes=8"),
    *("recipe.mixup={mixup_alpha: 0.2, cutmix_alpha: 1.0, prob: 0.8}", "recipe.augment_repeats=2"),
    *("recipe.optimizer.lr=0.02", "recipe.ema_decay=0.9", "evaluate.every_epochs=0.5"),
    *("checkpoint.every_steps=5", "logging.every_steps=1", "logging.log_sample_ids=true"),
)


@pytest.fixture(scope="module")
def run_on(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunOn:
    """Return a function that trains on some numbers of ranks, one after the other if killed."""
    home = tmp_path_factory.mktemp("runs")

    def run_on(
        *worlds: int,
        killed_at: Sequence[int] = (),
        strategy: str = "ddp",
        sizes: Sequence[str] = (),
    ) -> RunDir:
        name = "-".join(map(str, (strategy, *worlds, len([*home.iterdir()]))))
        overrides = [*RUN, f"data.url='{digits}'", f"strategy={strategy}", *sizes]
        return train_on_worlds(home / name, overrides, *worlds, killed_at=killed_at)

    return run_on


@pytest.fixture(scope="module")
def one_rank(run_on: RunOn) -> RunDir:
    return run_on(1)


@pytest.fixture(scope="module")
def four_ranks(run_on: RunOn) -> RunDir:
    return run_on(4)


def assert_equal_training(run: RunDir, expected: RunDir) -> None:
    """Check equal batches, and losses and metrics that are equal but for rounding."""
    assert global_batches(run) == global_batches(expected)
    names = ("train/loss", "train/grad_norm", "val/loss", "val/top1", "train/top1", "train/top5")
    ours, theirs = figures(run, *names), figures(expected, *names)
    assert ours.keys() == theirs.keys()
    assert (NUM_STEPS, "val/top1") in ours
    for key, values in theirs.items():
        assert [*ours[key]] == pytest.approx([*values] * len(ours[key]), rel=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "strategy"), [(2, "ddp"), (4, "ddp"), (4, "ddp_zero1"), (4, "fsdp2"), (8, "ddp")]
)
def test_sharing_ranks_train_as_one(
    one_rank: RunDir, four_ranks: RunDir, run_on: RunOn, num_ranks: int, strategy: str
) -> None:
    is_made = (num_ranks, strategy) == (4, "ddp")
    run = four_ranks if is_made else run_on(num_ranks, strategy=strategy)
    assert_equal_training(run, one_rank)


@pytest.mark.slow
def test_killed_sharing_ranks_end_with_the_same_bits(four_ranks: RunDir, run_on: RunOn) -> None:
    run = run_on(4, 4, killed_at=[13])
    assert run.num_attempts == 2
    assert weights(run, NUM_STEPS) == weights(four_ranks, NUM_STEPS)
    assert global_batches(run) == global_batches(four_ranks)


@pytest.mark.slow
def test_a_run_moves_to_fewer_ranks_and_sees_the_same_batches(
    one_rank: RunDir, run_on: RunOn
) -> None:
    assert_equal_training(run_on(4, 2, 1, killed_at=[8, 14]), one_rank)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("num_micro_batches", "worlds"), [(1, (3, 8)), (2, (6,)), (3, (6,)), (4, (2, 8)), (6, (3,))]
)
def test_ranks_and_micro_batches_of_any_chain_train_as_one(
    run_on: RunOn, num_micro_batches: int, worlds: Sequence[int]
) -> None:
    micros = f"recipe.num_micro_batches={num_micro_batches}"
    sizes = ("recipe.global_batch_size=96", "data.num_lanes=24", micros)
    one_rank = run_on(1, sizes=sizes)
    for num_ranks in worlds:
        assert_equal_training(run_on(num_ranks, sizes=sizes), one_rank)
