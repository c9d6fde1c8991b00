"""Checkpoints in the background: training waits for the copy of the state, not for its writing.

One is written at a time. A save that comes while another is being written waits for it: what is
asked for is saved, and a store that is slower than the interval shows as time in the step.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from orchestrator.schema import Checkpoint
from orchestrator.training.checkpoint import CheckpointStore, Part
from orchestrator.training.snapshot import Snapshot
from orchestrator.training.state import TrainState

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, on the rank that does."""

    def __init__(self, store: CheckpointStore, keep: Checkpoint) -> None:
        self._store = store
        self._keep = keep
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Copy the state, and begin to write it.

        Raises:
            Exception: what the write before has failed with.
        """
        self.finish()
        parts = self._snapshot.take(state, step)
        self._writing = self._pool.submit(self._write, step, parts, metrics)

    def check(self) -> None:
        """Raise what a write has failed with since the last call; it must not go unnoticed."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            Exception: what the write has failed with.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, parts: Mapping[str, Part], metrics: Mapping[str, float]) -> None:
        self._store.save(step, parts, metrics)
        self._store.prune(
            keep_last=self._keep.keep_last, keep_every_steps=self._keep.keep_every_steps
        )
        log.info("saved step %d to %s", step, self._store.location(step))
