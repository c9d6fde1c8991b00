"""Checkpoints in the background: training waits for the copy of the state, not for its writing.

One is written at a time. A save that comes while another is being written waits for it: what is
asked for is saved, and a store that is slower than the interval shows as time in the step.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from orchestrator.schema import Checkpoint
from orchestrator.training.checkpoint import CheckpointStore, Part
from orchestrator.training.retention import kept
from orchestrator.training.snapshot import Snapshot
from orchestrator.training.state import TrainState

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, on the rank that does."""

    def __init__(self, store: CheckpointStore, keep: Checkpoint) -> None:
        self._store = store
        self._keep = keep
        self._saved_s = time.monotonic()
        self.resumed_from = 0  # which stays: if this attempt goes wrong, it is where it began
        self._snapshot = Snapshot()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Copy the state, and begin to write it.

        Raises:
            Exception: what the write before has failed with.
        """
        self.finish()
        self._saved_s = time.monotonic()
        parts = self._snapshot.take(state, step)
        self._writing = self._pool.submit(self._write, step, parts, metrics)

    def is_due(self) -> bool:
        """Return whether the last save was begun too long ago; true once for each time it was."""
        minutes = self._keep.every_minutes
        if minutes is None or time.monotonic() - self._saved_s < 60 * minutes:
            return False
        self._saved_s = time.monotonic()  # the ranks agree on it a step later
        return True

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

    def clean_up(self) -> None:
        """Begin to remove what an attempt that was killed in the middle of an upload has left."""
        self._writing = self._pool.submit(self._store.abandon_uploads)

    def _write(self, step: int, parts: Mapping[str, Part], metrics: Mapping[str, float]) -> None:
        self._store.save(step, parts, metrics)
        self._store.prune(kept(self._store.manifests(), self._keep) | {self.resumed_from})
        log.info("saved step %d to %s", step, self._store.shown(step))
