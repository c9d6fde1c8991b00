"""Run a function in a process of its own, with a deadline: one that fails stops no other.

The process is forked from one that has imported torch and has not used a GPU.
"""

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_S = 0.05


@dataclass(frozen=True)
class Outcome:
    """What a function returned, or why it did not; and the seconds that it took."""

    value: Any
    problem: str | None
    seconds: float


def run_isolated(function: Callable[[], Any], log_file: Path, deadline_s: float) -> Outcome:
    """Call a function in a process, whose output goes to a file; its value is plain JSON."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    value_file = log_file.with_suffix(".json")
    start_s = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _run_child(function, log_file, value_file)
    problem = None
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() - start_s > deadline_s:
            os.killpg(pid, signal.SIGKILL)  # and the processes that it has started
            ended = os.waitpid(pid, 0)
            problem = f"killed after {deadline_s:.0f} s"
            break
        time.sleep(_POLL_S)
    code = os.waitstatus_to_exitcode(ended[1])
    if code and problem is None:
        problem = f"exit code {code}: {_last_line(log_file)[:300]}"
    value = None if problem else json.loads(value_file.read_text())
    return Outcome(value, problem, time.monotonic() - start_s)


def _run_child(function: Callable[[], Any], log_file: Path, value_file: Path) -> None:
    """Run the function as the one rank of a world; never return."""
    code = 1
    try:
        os.setsid()
        descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        value_file.write_text(json.dumps(function()))
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").split("\n") if log_file.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "no output")
