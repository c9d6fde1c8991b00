"""A question to a process that has torch, which what is before the launch does without.

The other side is orchestrator.torch_workers.entry.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.config.parse import ConfigError
from orchestrator.run.exit_status import MENDABLE, TELL_FD, ExitCode
from orchestrator.run.rundir import RunError


class TorchWorkerError(RunError):
    """The process failed, or took too long; the message is the last that it said."""


def run_torch_worker(
    module: str, request: Mapping[str, Any], *, deadline_s: float | None = None
) -> Any:
    """Return what a module below `orchestrator` answers, `torch_workers.model_cost` for one.

    Raises:
        ConfigError: the request cannot be fulfilled; the message says why, and what to do.
        RunError: likewise, and the config is not at fault.
        UnansweredError: the module failed.
    """
    command = [sys.executable, "-m", f"orchestrator.{module}"]
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
        raise TorchWorkerError(f"{module} did not end in {deadline_s} s") from None
    finally:
        if os.isatty(tell):
            os.write(tell, b"\r\033[K")  # what it told of its progress
        os.close(tell)
    said = done.stderr.strip()
    if done.returncode == ExitCode.NEVER_RESTART:
        raise ConfigError(said)
    if done.returncode == MENDABLE:
        raise RunError(said)
    if done.returncode:
        raise TorchWorkerError((said.splitlines() or ["nothing was said"])[-1])
    return json.loads(done.stdout)
