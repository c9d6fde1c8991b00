"""Runs whose ranks are forked from the test, for tests of many worlds: seconds each, and no shell.

What a launcher does before and after is left out; each rank calls `train` with the run directory.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from ranks import run_on_ranks
from torch.multiprocessing import ProcessExitedException

from orchestrator.config.parse import to_dict
from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.run.plan import data_fingerprint
from orchestrator.run.rundir import RunDir
from orchestrator.run.train_data import read_data
from orchestrator.training.distributed.world import World
from orchestrator.training.monitoring.metric_log import MetricLog
from orchestrator.training.stop_signal import StopSignal
from orchestrator.training.train import train


def create_run(path: Path, overrides: Sequence[str]) -> tuple[RunDir, Config]:
    """Create a run directory with what a rank needs of it."""
    (composed,) = compose([*overrides, "tracking=none", f"run_dir='{path}'"])
    config, run = composed.config, RunDir(path)
    path.mkdir()
    run.write_config(to_dict(config))
    identity = {"data": {"fingerprint": data_fingerprint(*read_data(config))}}
    run.write_json(run.identity_file, identity)
    return run, config


def train_on_ranks(
    run: RunDir, config: Config, num_ranks: int, killed_at: int | None = None
) -> None:
    """Make an attempt; fail if a rank is killed, the last after it has logged a step."""
    attempt = run.begin_attempt()
    run.log_dir(attempt).mkdir(parents=True)
    run_on_ranks(_train, num_ranks, config, run.path, attempt, killed_at)


def train_on_worlds(
    path: Path, overrides: Sequence[str], *worlds: int, killed_at: Sequence[int] = ()
) -> RunDir:
    """Train a new run on some numbers of ranks, one after the other: all but the last are killed.

    Args:
        killed_at: the steps after which they are.
    """
    run, config = create_run(path, overrides)
    for num_ranks, step in zip(worlds, killed_at, strict=False):
        with pytest.raises(ProcessExitedException):
            train_on_ranks(run, config, num_ranks, killed_at=step)
    train_on_ranks(run, config, worlds[-1])
    return run


def _train(world: World, config: Config, path: Path, attempt: int, killed_at: int | None) -> None:
    run = RunDir(path)
    file = run.metrics_file if world.is_main else None
    is_victim = world.rank == world.size - 1
    with _MortalLog(file, attempt, killed_at if is_victim else None) as log:
        outcome = train(run, config, world, log, StopSignal(run, polls_file=world.is_main))
    if world.is_main:
        outcome.write(run, attempt)


class _MortalLog(MetricLog):
    def __init__(self, path: Path | None, attempt: int, killed_at: int | None) -> None:
        super().__init__(path, attempt)
        self._killed_at = killed_at

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        super().log(step, metrics)
        if step == self._killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
