"""Checkpoints that are written while training goes on."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.schema import Checkpoint, Recipe
from orchestrator.training.checkpoint import CheckpointStore, Part
from orchestrator.training.saver import Saver
from orchestrator.training.state import TrainState

DEADLINE_S = 20
KEEP = Checkpoint(url=None, every_steps=1, keep_last=2, keep_every_steps=None)


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
def state(recipe: Recipe) -> TrainState:
    torch.manual_seed(0)
    return TrainState.create(nn.Linear(4, 4), recipe, torch.device("cpu"))


def test_what_is_written_is_the_state_of_the_step(tmp_path: Path, state: TrainState) -> None:
    store = Slow(str(tmp_path))
    saver = Saver(store, KEEP)
    expected = state.network.weight.detach().clone()  # type: ignore[union-attr, operator]
    saver.save(state, 1, {})
    with torch.no_grad():
        state.network.weight.zero_()  # type: ignore[union-attr, operator]
    assert store.steps() == []  # and training has gone on
    store.go.set()
    saver.finish()
    assert store.newest() == 1
    state.load_parts(store.load(1))
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
