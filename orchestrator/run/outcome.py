"""The state of a run, from attempts.jsonl and outcome.json."""

from dataclasses import dataclass
from typing import Any

from orchestrator.run.rundir import RunDir, read_json_lines

STATES = ("scheduled", "running", "finished", "stopped", "failed_permanently", "crashed")


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
