"""A question to a process that has torch, which what is before the launch does without.

The other side is orchestrator.training.answer.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.config import ConfigError
from orchestrator.rundir import RunError
from orchestrator.training.answer import MENDABLE, TELL_FD
from orchestrator.training.verdict import Exit


class UnansweredError(RunError):
    """The process failed, or took too long; the message is the last that it said."""


def ask(module: str, request: Mapping[str, Any], *, deadline_s: float | None = None) -> Any:
    """Return what a module of orchestrator.training answers.

    Raises:
        ConfigError: the request cannot be fulfilled; the message says why, and what to do.
        RunError: likewise, and the config is not at fault.
        UnansweredError: the module failed.
    """
    command = [sys.executable, "-m", f"orchestrator.training.{module}"]
    asked = json.dumps(request)
    tell = os.dup(2)
    try:
        done = subprocess.run(
            command,
            input=asked,
            # It finds the modules that ranks find.
            env=os.environ | {"PYTHONSAFEPATH": "1", TELL_FD: str(tell)},
            pass_fds=[tell],
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnansweredError(f"{module} did not end in {deadline_s} s") from None
    finally:
        if os.isatty(tell):
            os.write(tell, b"\r\033[K")  # what it told of its progress
        os.close(tell)
    said = done.stderr.strip()
    if done.returncode == Exit.NEVER_RESTART:
        raise ConfigError(said)
    if done.returncode == MENDABLE:
        raise RunError(said)
    if done.returncode:
        raise UnansweredError((said.splitlines() or ["nothing was said"])[-1])
    return json.loads(done.stdout)
