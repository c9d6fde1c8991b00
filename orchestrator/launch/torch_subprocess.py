"""Run a helper that needs torch in a subprocess; launch code itself must not import torch.

The other side is orchestrator.torch_workers.entry.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from orchestrator.config.parse import ConfigError
from orchestrator.run.outcome import PROGRESS_FD, USER_ERROR, ExitCode
from orchestrator.run.rundir import RunError


class TorchWorkerError(RunError):
    """The process failed, or took too long; the message is its last line."""


def run_torch_worker(
    target: str, request: Mapping[str, Any], *, deadline_s: float | None = None
) -> Any:
    """Call a function below `orchestrator`, e.g. `evaluation.evaluate_runs:evaluate_runs`.

    Raises:
        ConfigError: the config does not permit the request.
        RunError: something else that the user can fix.
        TorchWorkerError: the function failed.
    """
    progress = os.dup(2)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.torch_workers.entry", target],
            input=json.dumps(request),
            # It finds the modules that ranks find.
            env=os.environ | {"PYTHONSAFEPATH": "1", PROGRESS_FD: str(progress)},
            pass_fds=[progress],
            capture_output=True,
            text=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TorchWorkerError(f"{target} did not end in {deadline_s} s", value=target) from None
    finally:
        if os.isatty(progress):
            os.write(progress, b"\r\033[K")  # erases its progress
        os.close(progress)
    message = done.stderr.strip()
    if done.returncode == ExitCode.FAILED_PERMANENTLY:
        raise ConfigError(message)
    if done.returncode == USER_ERROR:
        raise RunError(message)
    if done.returncode:
        raise TorchWorkerError((message.splitlines() or ["no message"])[-1], value=target)
    return json.loads(done.stdout)
