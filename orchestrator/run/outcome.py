"""The end of an attempt, and the state of a run: exit codes, outcome.json, attempts.jsonl."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from orchestrator.run.rundir import RunDir, read_json_lines

PROGRESS_FD = "TAHOE_PROGRESS_FD"  # names the variable with the stderr of the calling process
USER_ERROR = 64  # data, a run, a checkpoint or a file: not the config
CRASHED = 1  # the exit code of an exception
STATES = ("scheduled", "running", "finished", "stopped", "failed_permanently", "crashed")


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


@dataclass(frozen=True)
class RunState:
    """One of `STATES`, for the last attempt, with the reason."""

    state: str
    attempt: int
    reason: str


def read_run_state(run: RunDir) -> RunState:
    """Read the state of the last attempt; without an outcome it has crashed, or is running."""
    attempt = run.num_attempts
    if attempt == 0:
        return RunState("scheduled", 0, "no attempt has been started")
    outcome = run.read_json(run.outcome_file) or {}
    if outcome.get("attempt") != attempt:
        return RunState("crashed", attempt, f"attempt {attempt} left no outcome")
    state, reason = str(outcome.get("outcome")), str(outcome.get("reason", ""))
    return RunState(state if state in STATES else "crashed", attempt, reason)


def running_state(attempt: int) -> RunState:
    """Return the state of an attempt that is known to be running."""
    return RunState("running", attempt, f"attempt {attempt} is running")


def read_attempts(run: RunDir) -> dict[int, dict[str, Any]]:
    """Read the facts of each attempt, from its first line and its last."""
    attempts: dict[int, dict[str, Any]] = {}
    for line in read_json_lines(run.attempts_file):
        if isinstance(line.get("attempt"), int):
            attempts.setdefault(line["attempt"], {}).update(line)
    return attempts


def record_lost_attempts(
    run: RunDir, describe: Callable[[int, Mapping[str, Any]], Mapping[str, Any]]
) -> list[int]:
    """Record the end of attempts that were killed before they could; return those without outcome.

    The caller holds the run's lock, so none of them is running.

    Args:
        describe: a function of an attempt's number and facts that returns those of its end.
    """
    lost = []
    for number, attempt in sorted(read_attempts(run).items()):
        if "ended_s" in attempt:
            continue
        if outcome := run.attempt_outcome(number):  # killed while it waited for something else
            run.end_attempt(number, **outcome)
        else:
            run.end_attempt(number, lost=True, **describe(number, attempt))
            lost.append(number)
    return lost
