"""Ends a rank that hangs, with the stacks of all its threads in its log.

A collective waits for ever for a rank that is stopped, swapped out or stuck in a driver; nothing
fails, and a job burns its hours. The standard library's faulthandler waits in a thread of C, which
runs whatever Python is blocked in. When one rank has ended, the launcher ends the others.
"""

import faulthandler
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_EVERY_S = 1.0  # arming starts a thread: too slow for each of a thousand steps a second

_timeout_s: float | None = None
_armed_s = float("-inf")


@contextmanager
def hang_watchdog(timeout_s: float | None) -> Iterator[None]:
    """Watch this process from its first heartbeat to the end of the block, if there is a limit."""
    global _timeout_s, _armed_s  # noqa: PLW0603  as faulthandler has one for the process
    _timeout_s, _armed_s = timeout_s, float("-inf")
    try:
        yield
    finally:
        _timeout_s = None
        faulthandler.cancel_dump_traceback_later()


def heartbeat() -> None:
    """Start the timeout again, since this rank has made progress."""
    global _armed_s  # noqa: PLW0603
    now_s = time.monotonic()
    if _timeout_s is not None and now_s - _armed_s >= _EVERY_S:
        _armed_s = now_s
        faulthandler.dump_traceback_later(_timeout_s + _EVERY_S, exit=True, file=sys.stderr)
