"""Gradients that are compressed between ranks: what arrives, and what a resumed run makes of it."""

from pathlib import Path
from typing import Any

import hook_ranks
import pytest
from rank_runs import create_run, train_on_ranks
from ranks import run_on_ranks
from run_results import figures, weights
from torch.multiprocessing import ProcessExitedException

from orchestrator.config.parse import ConfigError, parse, to_dict
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store.run_metadata import run_tags

NUM_STEPS, KILLED_AT = 10, 7
RUN = (
    *("data=digits", "model=smooth_network:build", f"recipe.steps={NUM_STEPS}"),
    *("recipe.global_batch_size=64", "recipe.num_micro_batches=4", "data.num_lanes=8"),
    *("recipe.optimizer.lr=0.02", "checkpoint.every_steps=3", "logging.every_steps=1"),
    *("strategy.start_powersgd_step=2", "strategy.matrix_approximation_rank=2"),
)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_hooks_average_as_their_papers_say(config: Config, num_ranks: int) -> None:
    limited = config.replace({"runtime.process_group_timeout_s": 30.0})  # a deadlock is an error
    run_on_ranks(hook_ranks.average_as_their_papers_say, num_ranks, limited)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hook", ["bf16_compress", pytest.param("powersgd", marks=pytest.mark.long)]
)
def test_a_killed_run_has_the_same_bits_unless_its_hook_remembers(
    digits: Path, tmp_path: Path, hook: str
) -> None:
    overrides = [*RUN, f"data.url='{digits}'", f"strategy.comm_hook={hook}"]
    (straight, config), (killed, _) = (create_run(tmp_path / n, overrides) for n in ("a", "b"))
    train_on_ranks(straight, config, 2)
    with pytest.raises(ProcessExitedException):
        train_on_ranks(killed, config, 2, killed_at=KILLED_AT)
    train_on_ranks(killed, config, 2)
    is_equal = weights(killed, NUM_STEPS) == weights(straight, NUM_STEPS)
    losses = [figures(run, "train/loss") for run in (killed, straight)]
    assert losses[0].keys() == losses[1].keys()
    assert (losses[0] == losses[1]) == is_equal == config.strategy.is_exact


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"strategy": {"name": "fsdp2", "comm_hook": "bf16_compress"}}, ["strategy"]),
        ({"strategy": {"comm_hook": "fp16_compress"}}, ["strategy.comm_hook"]),
        ({"recipe": {"precision": "fp16"}}, ["recipe.precision"]),
        ({"recipe": {"phases": [{"end_epoch": 1, "stage": 0}]}}, ["recipe.phases"]),
    ],
)
def test_what_a_hook_cannot_work_with_is_refused(
    config: Config, changes: dict[str, Any], keys: list[str]
) -> None:
    values = to_dict(config.replace({"strategy.comm_hook": "powersgd"}))
    for section, keys_of_section in changes.items():
        values[section] |= keys_of_section
    with pytest.raises(ConfigError) as refused:
        parse(values)
    assert refused.value.value == keys


def test_only_a_hook_that_remembers_makes_a_run_inexact(config: Config, tmp_path: Path) -> None:
    tags = [
        run_tags(RunDir(tmp_path), to_dict(config.replace({"strategy.comm_hook": hook})))
        for hook in (None, "bf16_compress", "powersgd")
    ]
    assert [tag.get("exact") for tag in tags] == [None, None, "false"]
