"""The metric log: one JSON line a record, in the run directory before the call returns.

`log` is a write, which survives SIGKILL of the process; a thread adds fsync every few seconds, so
that training never waits for a disk, and `sync` is called before each checkpoint's manifest.
MLflow is fed from this file by a process of its own (orchestrator.tracking.ship).
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_FSYNC_EVERY_S = 5.0


class MetricLog:
    """Appends records to a JSON-lines file; on ranks that have none (path None), does nothing."""

    def __init__(self, path: Path | None, attempt: int) -> None:
        self.attempt = attempt
        self._closing = threading.Event()
        self._fd = -1
        if path is None:
            return
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if not _ends_with_newline(path):
            os.write(self._fd, b"\n")  # a crash tore the last line: it must not swallow the next
        self._fsyncs = threading.Thread(target=self._fsync_regularly, daemon=True)
        self._fsyncs.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step; durable against a kill when this returns."""
        if self._fd < 0:
            return
        record = {
            "step": step,
            "time_ms": time.time_ns() // 1_000_000,
            "attempt": self.attempt,
            "metrics": dict(metrics),
        }
        os.write(self._fd, json.dumps(record).encode() + b"\n")

    def sync(self) -> None:
        """Return once all records are on the disk."""
        if self._fd >= 0:
            os.fsync(self._fd)

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
        self.sync()
        os.close(self._fd)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
