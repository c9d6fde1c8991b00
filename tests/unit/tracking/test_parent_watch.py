"""Waiting ends when the other end of the pipe closes, and trying ends in time."""

import os
import signal
import time
from contextlib import suppress

import pytest

from orchestrator.run.rundir import RunError
from orchestrator.tracking.shipping.parent_watch import (
    IGNORED,
    ParentWatch,
    Retry,
    RetryTimeoutError,
    SupersededError,
)


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        with suppress(OSError):
            os.close(fd)


class Flaky:
    """Fails a number of times."""

    def __init__(self, failures, error=OSError):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"failure {self.calls}")
        return self.calls


def test_waiting_ends_with_the_pipe(pipe) -> None:
    parent = ParentWatch(flush_timeout_s=0.2, fd=pipe[0])
    os.write(pipe[1], b"a word from rank 0 is no end")
    parent.wait(0.05)
    assert not parent.ended
    assert parent.remaining_s == float("inf")
    os.close(pipe[1])
    parent.wait(60)
    assert parent.ended
    started_s = time.monotonic()
    parent.wait(60)  # now only the rest of the time
    assert time.monotonic() - started_s < 5
    assert parent.remaining_s == 0


def test_without_a_stdin_there_is_nobody_to_wait_for(pipe) -> None:
    os.close(pipe[0])
    parent = ParentWatch(flush_timeout_s=1, fd=pipe[0])
    parent.wait(60)
    assert parent.ended


def test_signals_for_rank_0_are_not_for_the_shipper(pipe) -> None:
    parent = ParentWatch(flush_timeout_s=60, fd=pipe[0])
    numbers = [*IGNORED, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    try:
        parent.ignore_rank_signals()
        for number in IGNORED:
            signal.raise_signal(number)
        assert parent.remaining_s == float("inf")
        signal.raise_signal(signal.SIGTERM)
        assert 50 < parent.remaining_s <= 60
        assert not parent.ended
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def never() -> bool:
    return False


def test_it_leaves_what_fails_to_the_next_attempt(pipe) -> None:
    os.close(pipe[1])
    parent = ParentWatch(flush_timeout_s=60, fd=pipe[0])
    parent.wait(60)
    flaky = Flaky(failures=2)
    with pytest.raises(SupersededError, match="failure 2"):
        Retry(parent, lambda: flaky.calls == 2)(flaky)
    assert parent.remaining_s > 50


def test_it_insists_while_rank_0_lives(pipe) -> None:
    flaky = Flaky(failures=2)
    assert Retry(ParentWatch(flush_timeout_s=0, fd=pipe[0]), never)(flaky) == 3


def test_it_gives_up_when_the_time_is_over(pipe) -> None:
    parent = ParentWatch(flush_timeout_s=0.1, fd=pipe[0])
    os.close(pipe[1])
    parent.wait(60)
    with pytest.raises(RetryTimeoutError, match="failure 1"):
        Retry(parent, never)(Flaky(failures=1000))


def test_it_does_not_wait_for_what_only_the_user_can_mend(pipe) -> None:
    parent = ParentWatch(flush_timeout_s=60, fd=pipe[0])
    os.close(pipe[1])
    parent.wait(60)
    flaky = Flaky(failures=1000, error=RunError)
    with pytest.raises(RetryTimeoutError, match="failure 1"):
        Retry(parent, never)(flaky)
    assert flaky.calls == 1
