"""The JSON lines that ranks write: the metrics of a run, and the samples that it trained on.

A metric is in the run directory before `MetricLog.log` returns, and MLflow is fed from that file by
another process (orchestrator.tracking.shipping.shipper). The write survives SIGKILL of the process;
a thread adds fsync every few seconds, so that training never waits for a disk, and `sync` is called
before each checkpoint's manifest. While the disk is full, records wait in memory and training goes
on.
"""

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from data_sharding.loading.loader import Batch
from data_sharding.sampling.sample_order import MicroBatchKey
from orchestrator.number_format import pluralize
from orchestrator.run.rundir import append_json_line

_FSYNC_EVERY_S = 5.0
log = logging.getLogger(__name__)


class MetricLog:
    """Append records to a JSON-lines file; on ranks without one (path None), do nothing."""

    def __init__(self, path: Path | None, attempt: int) -> None:
        self.attempt = attempt
        self._closing = threading.Event()
        self._pending: list[bytes] = []  # lines that the disk had no space for
        self._num_failures = 0
        self._fd = -1
        if path is None:
            return
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        if (size := os.fstat(self._fd).st_size) and os.pread(self._fd, 1, size - 1) != b"\n":
            self._append(b"\n")  # a crash tore the last line: it must not swallow the next
        self._fsyncs = threading.Thread(target=self._fsync_regularly, daemon=True)
        self._fsyncs.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step; once this returns they survive a kill, if the disk has space.

        Without space they wait in memory.
        """
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
        """Wait until all records that were written are on the disk."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                log.warning("metrics may not outlive this machine: %s", error)

    def _append(self, line: bytes) -> None:
        """Write the pending lines and a new one, each whole or not at all."""
        self._pending.append(line)
        self._write_pending()

    def _write_pending(self) -> None:
        while self._pending:
            line = self._pending[0]
            try:
                if (num_written := os.write(self._fd, line)) < len(line):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - num_written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._on_write_error(error)
                return
            del self._pending[0]
        if self._num_failures:
            log.info("the pending metrics have been written")
            self._num_failures = 0

    def _on_write_error(self, error: OSError) -> None:
        self._num_failures += 1
        if self._num_failures == 1:
            log.warning(
                "metrics cannot be written: %s. Training goes on and keeps them in memory: make "
                "space before it ends, or they are lost",
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
        self._write_pending()
        if self._pending:
            log.error(
                "%s of metrics lost: the disk is full", pluralize(len(self._pending), "record")
            )
        self.sync()
        os.close(self._fd)


def log_sample_ids(
    batches: Iterator[Batch], keys: Iterable[MicroBatchKey], file: Path
) -> Iterator[Batch]:
    """Pass batches on, writing the step, micro-batch, first row and sample ids of each to a file.

    Switched on by `logging.log_sample_ids`, it proves that no sample is lost or seen twice. A line
    is written when the network is about to see the batch, so what a killed attempt had merely
    prefetched is not in it. Of an unreadable sample, the one in its place is.
    """
    for (step, micro, part), batch in zip(keys, batches, strict=True):
        ids = batch.ids.tolist()
        first_row = part.index * len(ids)
        append_json_line(file, {"step": step, "micro": micro, "first_row": first_row, "ids": ids})
        yield batch
