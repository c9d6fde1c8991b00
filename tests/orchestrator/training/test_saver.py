"""Checkpoints that are written while training goes on."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.schema import Checkpoint, Config
from orchestrator.training.checkpoint import CheckpointStore, Part
from orchestrator.training.restore import restore
from orchestrator.training.saver import Saver
from orchestrator.training.state import TrainState
from orchestrator.training.world import World

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
    """A store that begins to write when it is told to."""

    go: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def save(self, step: int, parts: Mapping[str, Part], metrics: Mapping[str, float]) -> None:
        assert self.go.wait(DEADLINE_S)
        if self.error:
            raise self.error
        super().save(step, parts, metrics)


@pytest.fixture
def state(config: Config, world: World) -> TrainState:
    torch.manual_seed(0)
    return TrainState.create(nn.Linear(4, 4), config, world)


def test_what_is_written_is_the_state_of_the_step(
    tmp_path: Path, state: TrainState, world: World
) -> None:
    store = Slow(str(tmp_path))
    saver = Saver(store, KEEP)
    expected = state.network.weight.detach().clone()  # type: ignore[union-attr, operator]
    saver.save(state, 1, {})
    with torch.no_grad():
        state.network.weight.zero_()  # type: ignore[union-attr, operator]
    assert store.steps() == []  # and training has gone on
    store.go.set()
    saver.finish()
    with store.open(1) as parts:
        assert restore(state, parts, world) == 1
    assert torch.equal(state.network.weight, expected)  # type: ignore[arg-type]


def test_a_save_waits_for_the_one_before(tmp_path: Path, state: TrainState) -> None:
    store = Slow(str(tmp_path))
    saver = Saver(store, KEEP)
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
    saver.finish()
    assert store.steps() == [1, 2]


@pytest.mark.parametrize("notice", [Saver.check, Saver.finish, lambda s: s.save(None, 2, {})])
def test_a_failure_is_noticed(
    tmp_path: Path, state: TrainState, notice: Callable[[Saver], None]
) -> None:
    store = Slow(str(tmp_path), error=OSError("No space left on device"))
    saver = Saver(store, KEEP)
    saver.save(state, 1, {})
    saver.check()  # it goes on
    store.go.set()
    assert saver._writing is not None
    saver._writing.exception(DEADLINE_S)
    with pytest.raises(OSError, match="No space left"):
        notice(saver)
    saver.check()  # told once
    saver.finish()


def test_what_an_attempt_began_with_stays(tmp_path: Path, state: TrainState) -> None:
    saver = Saver(CheckpointStore(str(tmp_path)), KEEP)
    for step in (10, 20, 30):
        saver.save(state, step, {})
    saver.finish()
    saver.resumed_from = 20
    for step in (40, 50, 60):
        saver.save(state, step, {})
    saver.finish()
    assert CheckpointStore(str(tmp_path)).steps() == [20, 50, 60]


def test_a_save_is_due_once_a_time(
    tmp_path: Path, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    saver = Saver(CheckpointStore(str(tmp_path)), replace(KEEP, every_minutes=0.5))
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
    saver.finish()
    never = Saver(CheckpointStore(str(tmp_path)), KEEP)
    now_s += 1e9
    assert not never.is_due()
