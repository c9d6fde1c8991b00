"""How the shipper knows that rank 0 has ended: it holds the other end of the shipper's stdin.

The kernel closes that end however rank 0 dies, SIGKILL included. Signals are no substitute: a
terminal and Slurm send them to every process of a job while rank 0 is still saving its state.
"""

import logging
import math
import os
import random
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.redact import one_line_error
from orchestrator.run.rundir import RunError

T = TypeVar("T")

IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LAST_PAUSES_S = 2.0  # once rank 0 has ended: somebody may be waiting for the drain
log = logging.getLogger("tahoe.shipper")
log.addHandler(logging.NullHandler())  # only the shipper itself keeps a log


class RetryTimeoutError(Exception):
    """The time to ship is over; the message says what failed last."""


class SupersededError(Exception):
    """A later attempt has begun, whose shipper sends all that this one has left."""


class ParentWatch:
    """Whether rank 0 lives, and how long may still be shipped when it does not.

    SIGTERM starts the same clock, since whoever sends it will send SIGKILL later, but it does not
    end the shipping: rank 0 may have a last value to log.
    """

    def __init__(self, flush_timeout_s: float, fd: int = 0) -> None:
        self.ended = False
        self._fd = fd
        self._flush_timeout_s = flush_timeout_s
        self._deadline_s = math.inf
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def ignore_rank_signals(self) -> None:
        """Ignore every signal that is meant for rank 0, and take SIGTERM as a deadline."""
        for ignored in IGNORED:
            signal.signal(ignored, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.start_deadline())

    @property
    def remaining_s(self) -> float:
        """Seconds that may still be spent; infinite while rank 0 lives."""
        return max(0.0, self._deadline_s - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the end of rank 0 or of the remaining time."""
        until_s = time.monotonic() + seconds
        while (left_s := min(until_s - time.monotonic(), self.remaining_s)) > 0:
            if self.ended:
                time.sleep(left_s)
            elif self._poll.poll(left_s * 1000) and not self._read():
                self.ended = True
                self.start_deadline()
                return

    def start_deadline(self) -> None:
        """Start the clock: what is left must be shipped in the time to drain."""
        self._deadline_s = min(self._deadline_s, time.monotonic() + self._flush_timeout_s)

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 4096)
        except OSError:  # started without a stdin: there is nobody to wait for
            return b""


class Retry:
    """Does a thing until it succeeds, with growing pauses, for as long as the lifeline allows."""

    def __init__(self, lifeline: ParentWatch, is_superseded: Callable[[], bool]) -> None:
        self._lifeline, self._is_superseded = lifeline, is_superseded

    def __call__(self, action: Callable[[], T]) -> T:
        """Return what the action returns.

        Raises:
            GaveUpError: rank 0 has ended and so has the time to drain, or trying is in vain.
            SupersededError: it failed, and a later attempt's shipper can try.
        """
        pause_s, reason = FIRST_PAUSE_S, "there was no time left"
        while self._lifeline.remaining_s > 0:
            try:
                return action()
            # Whatever a tracking server or its client thinks of must not end the shipping.
            except Exception as error:
                reason = one_line_error(error)
                if isinstance(error, RunError) and self._lifeline.ended:
                    break
            if self._is_superseded():
                raise SupersededError(reason)
            pause_s = min(pause_s, LAST_PAUSES_S if self._lifeline.ended else LONGEST_PAUSE_S)
            log.warning("trying again in about %.1f s: %s", pause_s, reason)
            # The jitter keeps the shippers of many runs from meeting at a server that came back.
            self._lifeline.wait(pause_s * random.uniform(0.5, 1))  # noqa: S311
            pause_s *= 2
        raise RetryTimeoutError(reason)
