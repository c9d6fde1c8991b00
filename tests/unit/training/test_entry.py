"""A worker reports its progress to the process that started it."""

import os
import pty
import time
from contextlib import suppress
from itertools import count

import pytest

from orchestrator.run.outcome import PROGRESS_FD
from orchestrator.torch_workers.entry import report_progress


def collect(fd: int, monkeypatch: pytest.MonkeyPatch, *, step_s: float) -> list[int]:
    """Pass four pieces on, of which each takes so long by the clock."""
    monkeypatch.setenv(PROGRESS_FD, str(fd))
    clock = count()
    monkeypatch.setattr(time, "monotonic", lambda: step_s * next(clock))
    return list(report_progress(range(4), 4, "run"))


def test_progress_on_a_terminal_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    assert collect(theirs, monkeypatch, step_s=0.3) == [0, 1, 2, 3]
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # EIO: all has been read, which comes in pieces
        while piece := os.read(ours, 1000):
            shown += piece
    os.close(ours)
    assert b"\n" not in shown
    assert shown.endswith(b"run: 100 % evaluated\033[K")


def test_progress_in_a_file_is_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    assert collect(theirs, monkeypatch, step_s=6) == [0, 1, 2, 3]
    assert os.read(ours, 1000).decode().splitlines()[0] == "run: 50 % evaluated"
    os.close(ours)
    assert collect(theirs, monkeypatch, step_s=6) == [0, 1, 2, 3]  # nobody reads any more
    os.close(theirs)


def test_no_progress_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    assert collect(-1, monkeypatch, step_s=60) == [0, 1, 2, 3]
