"""Requests to stop: a signal, or the run's stop file.

A signal handler sets a flag and does nothing else. The loop submits the flag once a step, the ranks
agree on the maximum (`world.AsyncMaxReduce`), and all act on it at the same step.
"""

import signal
import time
from types import FrameType

from orchestrator.run.rundir import RunDir


class StopSignal:
    """True once this rank has been requested to stop.

    Args:
        polls_file: True on the one rank that polls the stop file, at most once a second: a shared
            file system is slow.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, run: RunDir, *, polls_file: bool) -> None:
        self._file = run.stop_file if polls_file else None
        self._polled_s = 0.0
        self._requested = False
        for number in self.SIGNALS:
            signal.signal(number, self._on_signal)

    def __bool__(self) -> bool:
        now = time.monotonic()
        if self._file and now - self._polled_s >= 1:
            self._polled_s = now
            self._requested |= self._file.exists()
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
