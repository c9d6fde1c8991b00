"""A request to stop is a flag, raised by a signal or a file."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.run.outcome import ExitCode, RunOutcome
from orchestrator.run.rundir import RunDir
from orchestrator.training.stop_signal import StopSignal


@pytest.fixture(autouse=True)
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in StopSignal.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_signal_sets_the_flag_only(tmp_path: Path, number: signal.Signals) -> None:
    stop = StopSignal(RunDir(tmp_path), polls_file=False)
    assert not stop
    os.kill(os.getpid(), number)
    assert stop
    assert list(tmp_path.iterdir()) == []


def test_stop_file_sets_the_flag_on_the_polling_rank(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.stop_file.parent.mkdir()
    run.stop_file.touch()
    assert StopSignal(run, polls_file=True)
    assert not StopSignal(run, polls_file=False)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("finished", 0), ("stopped", 75), ("failed_permanently", 93)],
)
def test_outcomes_have_their_exit_codes(tmp_path: Path, outcome: str, code: int) -> None:
    run = RunDir(tmp_path)
    agreed = RunOutcome(outcome, 7, "because")  # type: ignore[arg-type]
    agreed.write(run, attempt=3)
    assert agreed.exit_code == ExitCode(code) == code
    written = run.read_json(run.outcome_file)
    assert written is not None
    assert (written["outcome"], written["step"], written["attempt"]) == (outcome, 7, 3)
