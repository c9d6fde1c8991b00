"""Watch rank 0 from a process that it has started, through the pipe at stdin.

The kernel closes the other end however rank 0 dies, SIGKILL included. Signals are no substitute: a
terminal and Slurm send them to every process of a job while rank 0 is still saving its state.
"""

import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from data_sharding.io.backoff import backoff_pauses
from orchestrator.redact import one_line_error
from orchestrator.run.rundir import RunError

T = TypeVar("T")

IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_LONGEST_FINAL_PAUSE_S = 2.0  # once rank 0 has ended: somebody may be waiting for the flush
log = logging.getLogger("tahoe.shipper")
log.addHandler(logging.NullHandler())  # only the shipper itself keeps a log


class RetryTimeoutError(Exception):
    """The time to ship is over; the message is the last failure."""


class SupersededError(Exception):
    """A later attempt has begun, whose shipper sends the rest."""


class ParentWatch:
    """The life of rank 0, and the remaining time to ship after its end.

    SIGTERM starts the same deadline, since its sender will send SIGKILL later, but it does not end
    the shipping: rank 0 may have a last value to log.
    """

    def __init__(self, flush_timeout_s: float, fd: int = 0) -> None:
        self.ended = False
        self._fd = fd
        self._flush_timeout_s = flush_timeout_s
        self._deadline_s = math.inf
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def ignore_rank_signals(self) -> None:
        """Ignore the signals that are meant for rank 0, and take SIGTERM as a deadline."""
        for ignored in IGNORED:
            signal.signal(ignored, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self.start_deadline())

    @property
    def remaining_s(self) -> float:
        """The seconds until the deadline; infinite while rank 0 lives."""
        return max(0.0, self._deadline_s - time.monotonic())

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the end of rank 0 or the deadline."""
        until_s = time.monotonic() + seconds
        while (left_s := min(until_s - time.monotonic(), self.remaining_s)) > 0:
            if self.ended:
                time.sleep(left_s)
            elif self._poll.poll(left_s * 1000) and not self._read():
                self.ended = True
                self.start_deadline()
                return

    def start_deadline(self) -> None:
        """Allow `flush_timeout_s` from now on."""
        self._deadline_s = min(self._deadline_s, time.monotonic() + self._flush_timeout_s)

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 4096)
        except OSError:  # started without a stdin: there is no parent to wait for
            return b""


class Retry:
    """Repeat actions until they succeed, with growing pauses, until the deadline of the parent."""

    def __init__(self, parent: ParentWatch, is_superseded: Callable[[], bool]) -> None:
        self._parent, self._is_superseded = parent, is_superseded

    def __call__(self, action: Callable[[], T]) -> T:
        """Return the result of the action.

        Raises:
            RetryTimeoutError: the deadline has passed, or only the user can fix the failure.
            SupersededError: it failed, and a later attempt's shipper can try.
        """
        pauses_s = backoff_pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        reason = "there was no time left"
        while self._parent.remaining_s > 0:
            try:
                return action()
            except Exception as error:  # no error of a server or its client may end the shipping
                reason = one_line_error(error)
                if isinstance(error, RunError) and self._parent.ended:
                    break
            if self._is_superseded():
                raise SupersededError(reason)
            longest_s = _LONGEST_FINAL_PAUSE_S if self._parent.ended else math.inf
            pause_s = min(next(pauses_s), longest_s)
            log.warning("retrying in %.1f s: %s", pause_s, reason)
            self._parent.wait(pause_s)
        raise RetryTimeoutError(reason)
