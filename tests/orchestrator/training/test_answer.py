"""A process that is asked says how far it is, to whoever asked."""

import os
import pty
import time
from contextlib import suppress
from itertools import count

import pytest

from orchestrator.run.exit_status import TELL_FD
from orchestrator.torch_workers.entry import counted


def told(fd: int, monkeypatch: pytest.MonkeyPatch, *, step_s: float) -> list[int]:
    """Pass four pieces on, of which each takes so long by the clock."""
    monkeypatch.setenv(TELL_FD, str(fd))
    clock = count()
    monkeypatch.setattr(time, "monotonic", lambda: step_s * next(clock))
    return list(counted(range(4), 4, "run"))


def test_a_terminal_is_told_often_and_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    assert told(theirs, monkeypatch, step_s=0.3) == [0, 1, 2, 3]
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # EIO: all has been read, which comes in pieces
        while piece := os.read(ours, 1000):
            shown += piece
    os.close(ours)
    assert b"\n" not in shown
    assert shown.endswith(b"run: 100 % judged\033[K")


def test_a_file_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    assert told(theirs, monkeypatch, step_s=6) == [0, 1, 2, 3]
    assert os.read(ours, 1000).decode().splitlines()[0] == "run: 50 % judged"
    os.close(ours)
    assert told(theirs, monkeypatch, step_s=6) == [0, 1, 2, 3]  # nobody reads any more
    os.close(theirs)


def test_nobody_has_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(-1, monkeypatch, step_s=60) == [0, 1, 2, 3]
