"""The metric log: one JSON line a record, in the run directory before the call returns.

`log` is a write, which survives SIGKILL of the process; a thread adds fsync every few seconds, so
that training never waits for a disk, and `sync` is called before each checkpoint's manifest. While
the disk is full, records wait in memory and training goes on. MLflow is fed from this file by a
process of its own (orchestrator.tracking.shipping.shipper).
"""

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_FSYNC_EVERY_S = 5.0
log = logging.getLogger(__name__)


class MetricLog:
    """Appends records to a JSON-lines file; on ranks that have none (path None), does nothing."""

    def __init__(self, path: Path | None, attempt: int) -> None:
        self.attempt = attempt
        self._closing = threading.Event()
        self._waiting: list[bytes] = []  # for room on the disk
        self._num_refused = 0
        self._fd = -1
        if path is None:
            return
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if not _ends_with_newline(path):
            self._append(b"\n")  # a crash tore the last line: it must not swallow the next
        self._fsyncs = threading.Thread(target=self._fsync_regularly, daemon=True)
        self._fsyncs.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step; durable against a kill when this returns, if there is room."""
        if self._fd < 0:
            return
        record = {
            "step": step,
            "time_ms": time.time_ns() // 1_000_000,
            "attempt": self.attempt,
            "metrics": dict(metrics),
        }
        self._append(json.dumps(record).encode() + b"\n")

    def sync(self) -> None:
        """Return once all records that there was room for are on the disk."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                log.warning("metrics may not outlive this machine: %s", error)

    def _append(self, line: bytes) -> None:
        """Write a line, and before it those that found no room; none in part."""
        self._waiting.append(line)
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            line = self._waiting[0]
            try:
                if (num_written := os.write(self._fd, line)) < len(line):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - num_written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._refused(error)
                return
            del self._waiting[0]
        if self._num_refused:
            log.info("the metrics that found no room have been written")
            self._num_refused = 0

    def _refused(self, error: OSError) -> None:
        self._num_refused += 1
        if self._num_refused == 1:
            log.warning(
                "metrics cannot be written: %s. Training goes on, and they wait in memory: make "
                "room before it ends, or they are lost",
                error,
            )

    def _fsync_regularly(self) -> None:
        while not self._closing.wait(_FSYNC_EVERY_S):
            self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd < 0:
            return
        self._closing.set()
        self._fsyncs.join()
        self._write_waiting()
        if self._waiting:
            log.error("%d records of metrics are lost: there was no room", len(self._waiting))
        self.sync()
        os.close(self._fd)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
