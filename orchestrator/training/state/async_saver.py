"""Checkpoints in the background: training waits for the copy of the state, not for its writing.

One is written at a time. A save that comes while another is being written waits for it: what is
asked for is saved, and a store that is slower than the interval shows as time in the step.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from data_sharding.io import filesystem
from orchestrator.checkpoint.retention import steps_to_keep
from orchestrator.checkpoint.store import CheckpointStore, WriteFn
from orchestrator.config.schema import Checkpoint
from orchestrator.training.state.host_snapshot import HostSnapshot
from orchestrator.training.state.train_state import TrainState

log = logging.getLogger(__name__)


class SaveError(Exception):
    """What was to be saved is not, and training is not to go on without."""


class AsyncCheckpointer:
    """Writes the checkpoints of a run, on the rank that does."""

    def __init__(self, store: CheckpointStore, keep: Checkpoint) -> None:
        self._store = store
        self._keep = keep
        self._saved_s = time.monotonic()
        self.resumed_from = 0  # which stays: if this attempt goes wrong, it is where it began
        self._snapshot = HostSnapshot()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._failed: list[str] = []  # why, of the saves since the last that succeeded

    def save(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Copy the state, and begin to write it.

        Raises:
            SaveError: the write before has failed, and too many before it.
        """
        self._settle()
        self._saved_s = time.monotonic()
        parts = self._snapshot.capture(state, step)
        self._writing = self._pool.submit(self._write, step, parts, metrics)

    def is_due(self) -> bool:
        """Return whether the last save was begun too long ago; true once for each time it was."""
        minutes = self._keep.every_minutes
        if minutes is None or time.monotonic() - self._saved_s < 60 * minutes:
            return False
        self._saved_s = time.monotonic()  # the ranks agree on it a step later
        return True

    def raise_if_failed(self) -> None:
        """Tell of a write that has failed since the last call; it must not go unnoticed.

        Raises:
            SaveError: too many have failed in a row.
        """
        if self._writing is not None and self._writing.done():
            self._settle()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            SaveError: the last write has failed, and none will follow it.
        """
        self._settle()
        if self._failed:
            raise SaveError(
                f"{self._failed[-1]}. Make room or renew the keys, then resume: it will be done "
                "again"
            )

    def _settle(self) -> None:
        """Wait for the write, and count it if it has failed."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            self._failed.append(str(error))
        else:
            self._failed.clear()
            return
        num, allowed = len(self._failed), self._keep.max_failed_saves
        if num >= allowed:
            raise SaveError(
                f"{num} saves in a row have failed (checkpoint.max_failed_saves={allowed}). The "
                f"last: {self._failed[-1]}. Make room or renew the keys, then resume: the "
                "checkpoint before is whole"
            )
        log.error(
            "%s. Training goes on, and saves again at the next occasion; it ends after %d failures "
            "in a row, and this is number %d",
            *(self._failed[-1], allowed, num),
        )

    def abort_stale_uploads(self) -> None:
        """Begin to remove what an attempt that was killed in the middle of an upload has left."""
        self._writing = self._pool.submit(self._store.abort_stale_uploads)

    def _write(self, step: int, parts: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        try:
            self._save(step, parts, metrics)
        except OSError as error:
            self._store.discard(step)
            where = self._store.location(step)
            raise OSError(f"step {step} could not be saved to {where}: {error}") from error
        log.info("saved step %d to %s", step, self._store.display_path(step))
        try:
            self._store.prune(
                steps_to_keep(self._store.manifests(), self._keep) | {self.resumed_from}
            )
        except OSError as error:
            log.warning("what is no longer kept in %s stays there: %s", self._store.url, error)

    def _save(self, step: int, parts: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        try:
            self._store.save(step, parts, metrics)
        except PermissionError:  # keys may have expired, and others lie where they are read from
            filesystem.reload_credentials(self._store.url)
            self._store.save(step, parts, metrics)
