"""Ranks that share a micro-batch compute what one rank computes."""

import pytest
import shared_ranks
from ranks import run_on_ranks

from orchestrator.config.schema import Config


@pytest.mark.parametrize(
    "num_ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))]
)
def test_batch_norm_and_mixing_see_the_whole_micro_batch(config: Config, num_ranks: int) -> None:
    run_on_ranks(shared_ranks.all_at_once, num_ranks, config)
