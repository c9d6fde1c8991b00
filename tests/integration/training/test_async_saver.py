"""Checkpoints that are written while training goes on."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Tahoe
from s3_server import take_out_of_reach
from torch import nn

from orchestrator.checkpoint.store import CheckpointStore, WriteFn
from orchestrator.config.schema import Checkpoint, Config
from orchestrator.run.rundir import RunDir
from orchestrator.training.distributed.world import World
from orchestrator.training.state.async_saver import AsyncCheckpointer, SaveError
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState

DEADLINE_S = 20
KEEP = Checkpoint(
    url=None,
    every_steps=1,
    every_minutes=None,
    keep_last=2,
    keep_best="val/top1",
    keep_every_steps=None,
)


@dataclass(frozen=True)
class Slow(CheckpointStore):
    """A store that starts to write when `go` is set."""

    go: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def save(self, step: int, parts: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        assert self.go.wait(DEADLINE_S)
        if self.error:
            raise self.error
        super().save(step, parts, metrics)


@pytest.fixture
def state(config: Config, world: World) -> TrainState:
    torch.manual_seed(0)
    return TrainState.create(nn.Linear(4, 4), config, world)


def test_checkpoint_holds_the_state_at_the_call_of_save(
    tmp_path: Path, state: TrainState, world: World
) -> None:
    store = Slow(str(tmp_path))
    saver = AsyncCheckpointer(store, KEEP)
    expected = state.model.weight.detach().clone()  # type: ignore[union-attr, operator]
    saver.save(state, 1, {})
    with torch.no_grad():
        state.model.weight.zero_()  # type: ignore[union-attr, operator]
    assert store.steps() == []  # and training has gone on
    store.go.set()
    saver.wait()
    with store.open(1) as parts:
        assert restore(state, parts, world) == 1
    assert torch.equal(state.model.weight, expected)  # type: ignore[arg-type]


def test_save_waits_for_the_previous_save(tmp_path: Path, state: TrainState) -> None:
    store = Slow(str(tmp_path))
    saver = AsyncCheckpointer(store, KEEP)
    saver.save(state, 1, {})
    begun, done = threading.Event(), threading.Event()

    def second() -> None:
        begun.set()
        saver.save(state, 2, {})
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert begun.wait(DEADLINE_S)
    assert not done.wait(0.2)
    store.go.set()
    thread.join(DEADLINE_S)
    saver.wait()
    assert store.steps() == [1, 2]


@dataclass(frozen=True)
class Full(CheckpointStore):
    """A store without room for the saves of some steps."""

    too_much: tuple[int, ...] = ()

    def save(self, step: int, parts: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        def run_out(file: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        more = {"rest": run_out} if step in self.too_much else {}
        super().save(step, {**parts, **more}, metrics)


def test_training_stops_after_too_many_failed_saves_in_a_row(
    tmp_path: Path, state: TrainState, caplog: pytest.LogCaptureFixture
) -> None:
    store = Full(str(tmp_path), too_much=(2, 3, 5, 6, 7))
    saver = AsyncCheckpointer(store, replace(KEEP, max_failed_saves=3))
    for step in (1, 2, 3, 4, 5, 6, 7):
        saver.save(state, step, {})
    with pytest.raises(SaveError, match="No space left"):
        saver.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000004"]
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [step for step in range(1, 8) if any(f"step {step} " in line for line in messages)] == [
        *(2, 3, 5, 6)
    ]
    saver.raise_if_failed()  # raised once


def test_failure_of_the_last_save_is_an_error(tmp_path: Path, state: TrainState) -> None:
    saver = AsyncCheckpointer(Full(str(tmp_path), too_much=(2,)), KEEP)
    saver.save(state, 1, {})
    saver.save(state, 2, {})
    with pytest.raises(SaveError, match="step 2"):
        saver.wait()


def test_unreachable_store_is_a_save_error(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore's errors are no OSError: one in a background thread would end the attempt."""
    take_out_of_reach(monkeypatch)
    saver = AsyncCheckpointer(CheckpointStore("s3://bucket/run"), KEEP)
    saver.save(state, 1, {})
    with pytest.raises(SaveError, match="EndpointConnectionError"):
        saver.wait()


def test_programming_errors_in_a_save_are_raised(tmp_path: Path, state: TrainState) -> None:
    store = Slow(str(tmp_path), error=TypeError("a mistake of ours"))
    store.go.set()
    saver = AsyncCheckpointer(store, KEEP)
    saver.save(state, 1, {})
    with pytest.raises(TypeError, match="ours"):
        saver.save(state, 2, {})


FAULTY_RUN = """
import sys
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.launch.local_launcher import run_attempt

(composed,) = compose(sys.argv[1:])
run, plan = create_or_open_run(composed)
sys.exit(run_attempt(run, composed.config, plan, "orchestrator.drill.faulty_worker"))
"""


@pytest.mark.slow
def test_run_on_a_full_disk_can_be_resumed(tahoe: Tahoe, digits: Path) -> None:
    often = ("recipe.steps=12", "checkpoint.every_steps=2", "checkpoint.keep_best=null")
    where = (f"data.url='{digits}'", f"run_dir='{tahoe.cwd / 'run'}'", "tracking=none")
    environ = os.environ | {"TAHOE_FAULT": json.dumps({"how": "full", "call": 200})}
    command = [sys.executable, "-c", FAULTY_RUN, *often, *where, "checkpoint.max_failed_saves=2"]
    assert subprocess.run(command, env=environ, timeout=60, check=False).returncode == 1

    run = RunDir(tahoe.cwd / "run")
    text = (run.log_dir(1) / "rank-00000.log").read_text()
    assert "Traceback" not in text
    assert "No space left" in text.splitlines()[-1]
    assert run.read_json(run.outcome_file) is None  # so that it may be started again
    steps = CheckpointStore(str(run.checkpoints_dir)).steps()
    assert 0 < steps[-1] < 12
    assert len([*run.checkpoints_dir.iterdir()]) == len(steps)
    tahoe("resume", "run")


def test_checkpoint_resumed_from_is_never_pruned(tmp_path: Path, state: TrainState) -> None:
    saver = AsyncCheckpointer(CheckpointStore(str(tmp_path)), KEEP)
    for step in (10, 20, 30):
        saver.save(state, step, {})
    saver.wait()
    saver.resumed_from = 20
    for step in (40, 50, 60):
        saver.save(state, step, {})
    saver.wait()
    assert CheckpointStore(str(tmp_path)).steps() == [20, 50, 60]


def test_is_due_once_per_interval(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    saver = AsyncCheckpointer(CheckpointStore(str(tmp_path)), replace(KEEP, every_minutes=0.5))
    assert not saver.is_due()
    now_s += 31
    assert saver.is_due()
    assert not saver.is_due()  # though the save comes a step later
    now_s += 20
    saver.save(state, 1, {})
    now_s += 20
    assert not saver.is_due()  # half a minute after a save, whatever it was for
    now_s += 10
    assert saver.is_due()
    saver.wait()
    never = AsyncCheckpointer(CheckpointStore(str(tmp_path)), KEEP)
    now_s += 1e9
    assert not never.is_due()
