"""A process that hangs is ended, with its stacks; one that says that it is alive is not."""

import subprocess
import sys

PROGRAM = """
import sys, time
from orchestrator.training.monitoring import watchdog

watchdog._EVERY_S = 0.01

def hang_here():
    time.sleep(60)

with watchdog.hang_watchdog(0.3):
    for _ in range(10):
        watchdog.heartbeat()
        time.sleep(0.1)
    print("alive for longer than the timeout", flush=True)
    if sys.argv[1] == "hang":
        hang_here()
if sys.argv[1] == "end":
    time.sleep(1)
print("ended", flush=True)
"""


def run(how: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_who_goes_on_is_left_alone_and_nobody_is_watched_afterwards() -> None:
    done = run("end")
    assert done.returncode == 0, done.stderr
    assert "ended" in done.stdout


def test_who_hangs_is_ended_and_says_where() -> None:
    done = run("hang")
    assert done.returncode == 1
    assert "alive for longer" in done.stdout
    assert "ended" not in done.stdout
    assert "in hang_here" in done.stderr
