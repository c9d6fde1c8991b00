"""The end of an attempt: exit codes, requests of the ranks, the outcome on disk."""

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
    STOPPED = 75  # saved, to be continued (EX_TEMPFAIL of sysexits.h)
    FAILED_PERMANENTLY = 93  # bad config or diverged: a restart would fail again


class StepRequest(IntEnum):
    """A rank's request after a step. All ranks execute the maximum over ranks."""

    NOTHING = 0
    SAVE = 1
    GIVE_UP = 2  # save first; data of later steps cannot be read
    STOP = 3  # save first


class FatalRunError(Exception):
    """A restart of the run would fail again; the message is the reason."""


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of an attempt that the ranks agreed on."""

    outcome: Literal["finished", "stopped", "failed_permanently"]
    step: int | None
    reason: str

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode[self.outcome.upper()]

    def write(self, run: RunDir, attempt: int) -> None:
        """Write the outcome to the run directory; for the launcher it overrides the exit codes."""
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
