"""A sharded optimizer updates as one on every rank does."""

from pathlib import Path

import pytest
import timm
import zero_ranks
from cli_runner import Tahoe
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_on_ranks
from run_results import figures, weights
from strategy_runs import train_straight_and_changing

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.strategy.zero import balance_by_size

# Of timm's: those that need other hardware or a graph of the gradients, and those that are refused.
NOT_HERE = ("bnb", "fused", "adahessian")
FUSED = [(name, {"fused": True}) for name in ("sgd", "adam", "adamw", "adagrad")]
REFUSED = ("lamb", "clamb", "kron")


@given(st.lists(st.integers(0, 10**9), max_size=50), st.integers(1, 9))
def test_ranks_own_about_equal_sizes(sizes: list[int], num_ranks: int) -> None:
    owners = balance_by_size(sizes, num_ranks)
    loads = [sum(n for n, o in zip(sizes, owners, strict=True) if o == r) for r in range(num_ranks)]
    assert sum(loads) == sum(sizes)
    assert max(loads) <= sum(sizes) / num_ranks + max(sizes, default=0)


@pytest.mark.long
@pytest.mark.slow
def test_zero_updates_like_ddp_for_all_timm_optimizers(config: Config) -> None:
    names = [str(n) for n in timm.optim.list_optimizers() if not str(n).startswith(NOT_HERE)]
    calls = [(name, {}) for name in names if not name.startswith(REFUSED)]
    assert len(calls) > 40
    run_on_ranks(
        zero_ranks.updates_alike, 3, config, [*calls, *FUSED, ("lamb", {"max_grad_norm": None})]
    )


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize(("name", "key"), [("lamb", "max_grad_norm"), ("kron", "strategy")])
def test_optimizers_that_need_all_gradients_cannot_be_sharded(
    config: Config, world: World, name: str, key: str
) -> None:
    with pytest.raises(ConfigError) as error:
        TrainState.create(
            zero_ranks.make_network(), zero_ranks.with_optimizer(config, name, "ddp_zero1"), world
        )
    assert error.value.value == "ddp_zero1"
    assert key in error.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_optimizer_state_is_sharded_saved_and_restored(
    config: Config, num_ranks: int, tmp_path: Path
) -> None:
    run_on_ranks(zero_ranks.shares_and_hands_over, num_ranks, config, tmp_path)


@pytest.mark.slow
def test_unfit_checkpoint_is_an_error_on_every_rank(config: Config, tmp_path: Path) -> None:
    run_on_ranks(zero_ranks.refuses_alike, 2, config, tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_changing_the_strategy_keeps_the_bits(tahoe: Tahoe, digits: Path) -> None:
    straight, changing = train_straight_and_changing(tahoe, digits, ("ddp_zero1", "ddp"))
    ours, theirs = figures(changing, "val/loss"), figures(straight, "val/loss")
    assert len(theirs) == 8
    assert {step: ours[step] for step in theirs} == theirs
    assert weights(changing, 24) == weights(straight, 24)
