"""How an attempt ends: what the ranks are asked to do, what they agree on, and the exit code.

A signal handler sets a flag and does nothing else. The loop offers the flag once a step, the ranks
agree on the highest (`world.Agreement`), and all act on it at the same step.
"""

import signal
import time
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType
from typing import Literal

from orchestrator.rundir import RunDir


class Exit(IntEnum):
    """Exit codes of a group of workers; anything else is a crash."""

    FINISHED = 0
    STOPPED = 75  # saved, and wants to go on (EX_TEMPFAIL of sysexits.h)
    NEVER_RESTART = 93  # a bad config, a diverged run: starting again would end the same


class Wish(IntEnum):
    """What a rank offers after each step; the highest of all ranks is done by all."""

    NOTHING = 0
    SAVE = 1
    GIVE_UP = 2  # having saved: data that will be needed cannot be read
    STOP = 3  # having saved


class NeverRestartError(Exception):
    """The run cannot go on, however often it is started; the message is the reason."""


@dataclass(frozen=True)
class Verdict:
    """What the ranks agreed on."""

    verdict: Literal["finished", "stopped", "never_restart"]
    step: int | None
    reason: str

    @property
    def exit_code(self) -> Exit:
        return Exit[self.verdict.upper()]

    def write(self, run: RunDir, attempt: int) -> None:
        """Leave the verdict in the run directory; the launcher believes it before exit codes."""
        run.write_json(
            run.verdict_file,
            {
                "verdict": self.verdict,
                "step": self.step,
                "attempt": attempt,
                "reason": self.reason,
                "time_s": time.time(),
            },
        )


class StopRequest:
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
