"""How an attempt ends: exit codes of ranks, requests between ranks, the outcome on disk."""

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from orchestrator.run.rundir import RunDir

PROGRESS_FD = "TAHOE_PROGRESS_FD"  # names the variable with the stderr of the calling process
USER_ERROR = 64  # data, a run, a checkpoint or a file: not the config


class ExitCode(IntEnum):
    """Exit codes of a group of workers; anything else is a crash."""

    FINISHED = 0
    STOPPED = 75  # saved, and wants to go on (EX_TEMPFAIL of sysexits.h)
    FAILED_PERMANENTLY = 93  # a bad config, a diverged run: starting again would end the same


class StepRequest(IntEnum):
    """What a rank offers after each step; the highest of all ranks is done by all."""

    NOTHING = 0
    SAVE = 1
    GIVE_UP = 2  # having saved: data that will be needed cannot be read
    STOP = 3  # having saved


class FatalRunError(Exception):
    """The run cannot go on, however often it is started; the message is the reason."""


@dataclass(frozen=True)
class RunOutcome:
    """What the ranks agreed on."""

    outcome: Literal["finished", "stopped", "failed_permanently"]
    step: int | None
    reason: str

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode[self.outcome.upper()]

    def write(self, run: RunDir, attempt: int) -> None:
        """Leave the outcome in the run directory; the launcher believes it before exit codes."""
        run.write_json(
            run.outcome_file,
            {
                "outcome": self.outcome,
                "step": self.step,
                "attempt": attempt,
                "reason": self.reason,
                "time_s": time.time(),
            },
        )
