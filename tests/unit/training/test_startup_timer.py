"""The line that tells where the time to the first step has gone."""

import logging
import re
import time

import pytest

from orchestrator.training.monitoring import startup_timer


def test_the_phases_add_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    began_s = time.time()
    startup_timer.start(began_s - 10_000)  # before this process was there
    startup_timer.mark("imports")
    startup_timer.mark("data")
    assert startup_timer.is_running()
    startup_timer.log_phases()
    assert not startup_timer.is_running()
    (line,) = caplog.messages
    found = re.fullmatch(
        r"first step after ([\d.]+) s: launch ([\d.]+), imports ([\d.]+), data ([\d.]+), "
        r"first step ([\d.]+)",
        line,
    )
    assert found
    total, *phases = map(float, found.groups())
    assert total == pytest.approx(10_000, abs=10)
    assert sum(phases) == pytest.approx(total, abs=0.05)
    assert phases[0] < total  # this process has been there for a while


def test_a_process_that_did_not_begin_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    startup_timer.mark("imports")
    assert not startup_timer.is_running()
    assert caplog.messages == []
