"""Checkpoints written in the background: training waits only for the copy of the state.

One is written at a time. A save that comes while another is being written waits for it, so a store
that is slower than the interval shows as step time.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from data_sharding.errors import UserError
from data_sharding.io import filesystem
from orchestrator.checkpoint.retention import steps_to_keep
from orchestrator.checkpoint.store import CheckpointStore, WriteFn
from orchestrator.config.schema import Checkpoint
from orchestrator.training.state.host_snapshot import HostSnapshot, send_to_rank0
from orchestrator.training.state.train_state import TrainState

_HINT = "Free space or renew the credentials, then resume the run."
log = logging.getLogger(__name__)


class SaveError(UserError):
    """A checkpoint could not be written, and training must not go on without it."""


class AsyncCheckpointer:
    """Writes the checkpoints of a run on rank 0; the other ranks send their part of the state."""

    def __init__(self, store: CheckpointStore, config: Checkpoint, *, is_main: bool = True) -> None:
        self._store, self._config, self._is_main = store, config, is_main
        self._saved_s = time.monotonic()
        self.resumed_from = 0  # this checkpoint is kept: a fallback if the attempt goes wrong
        self._snapshot = HostSnapshot()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._errors: list[str] = []  # of the saves since the last that succeeded

    def save(self, state: TrainState, step: int, metrics: Mapping[str, float]) -> None:
        """Copy the state and start to write it; a collective.

        Args:
            step: number of steps done.
            metrics: the evaluation of this very step, or empty.

        Raises:
            SaveError: the previous write failed, after too many others.
        """
        if not self._is_main:
            send_to_rank0(state)
            return
        self._collect_result()
        self._saved_s = time.monotonic()
        files = self._snapshot.capture(state, step)
        self._pending = self._pool.submit(self._write, step, files, metrics)

    def is_due(self) -> bool:
        """Check whether `every_minutes` have passed since the last save; true once per interval."""
        minutes = self._config.every_minutes
        if not self._is_main or minutes is None or time.monotonic() - self._saved_s < 60 * minutes:
            return False
        self._saved_s = time.monotonic()  # the save itself follows a step later
        return True

    def raise_if_failed(self) -> None:
        """Log a write that has failed since the last call; raise `SaveError` after too many."""
        if self._pending is not None and self._pending.done():
            self._collect_result()

    def wait(self) -> None:
        """Wait for the last write.

        Raises:
            SaveError: it has failed, and no other will follow.
        """
        self._collect_result()
        if self._errors:
            raise SaveError(self._errors[-1], value=self._store.url, hint=_HINT)

    def _collect_result(self) -> None:
        """Wait for the pending write and count failures in a row."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except OSError as error:
            self._errors.append(str(error))
        else:
            self._errors.clear()
            return
        num_failed, max_failed = len(self._errors), self._config.max_failed_saves
        if num_failed >= max_failed:
            raise SaveError(
                f"{num_failed} saves in a row have failed (checkpoint.max_failed_saves="
                f"{max_failed}); the last: {self._errors[-1]}",
                value=self._store.url,
                hint=f"{_HINT} The previous checkpoint is intact.",
            )
        log.error(
            "%s. Training continues until the next save; it stops after %d failures in a row, and "
            "this is number %d",
            *(self._errors[-1], max_failed, num_failed),
        )

    def abort_stale_uploads(self) -> None:
        """Start to remove what an attempt that was killed during an upload has left."""
        if self._is_main:
            self._pending = self._pool.submit(self._store.abort_stale_uploads)

    def _write(self, step: int, files: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        try:
            self._save(step, files, metrics)
        except OSError as error:
            self._store.discard(step)
            url = self._store.location(step)
            raise OSError(f"step {step} could not be saved to {url}: {error}") from error
        log.info("saved step %d to %s", step, self._store.display_path(step))
        try:
            kept = steps_to_keep(self._store.manifests(), self._config)
            self._store.prune(kept | {self.resumed_from})
        except OSError as error:
            log.warning("old checkpoints in %s could not be removed: %s", self._store.url, error)

    def _save(self, step: int, files: Mapping[str, WriteFn], metrics: Mapping[str, float]) -> None:
        try:
            self._store.save(step, files, metrics)
        except PermissionError:  # credentials may have expired and been renewed
            filesystem.reload_credentials(self._store.url)
            self._store.save(step, files, metrics)
