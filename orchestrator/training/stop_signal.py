"""How an attempt ends: what the ranks are asked to do, what they agree on, and the exit code.

A signal handler sets a flag and does nothing else. The loop offers the flag once a step, the ranks
agree on the highest (`world.AsyncMaxReduce`), and all act on it at the same step.
"""

import signal
import time
from types import FrameType

from orchestrator.run.rundir import RunDir


class StopSignal:
    """Whether this rank has been asked to stop, by a signal or by the run's stop file."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, run: RunDir, *, polls_file: bool) -> None:
        """Listen. One rank polls the file, at most once a second: a shared file system is slow."""
        self._file = run.stop_file if polls_file else None
        self._polled_s = 0.0
        self._asked = False
        for number in self.SIGNALS:
            signal.signal(number, self._on_signal)

    def __bool__(self) -> bool:
        now = time.monotonic()
        if self._file and now - self._polled_s >= 1:
            self._polled_s = now
            self._asked |= self._file.exists()
        return self._asked

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
