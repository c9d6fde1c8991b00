"""How a process that has torch answers `launch.ask`: a request on stdin, JSON on stdout."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from data_sharding.manifest import DataError
from orchestrator.config import ConfigError
from orchestrator.rundir import RunError
from orchestrator.training.checkpoint import CheckpointError
from orchestrator.training.verdict import Exit

MENDABLE = 64  # not the config's fault: data, a run, a checkpoint, a file


def answer(work: Callable[..., Mapping[str, Any]]) -> int:
    """Print what the work returns for the arguments that were asked with.

    What the user can mend is told on stderr, with exit codes of its own.
    """
    asked = json.load(sys.stdin)
    try:
        found = work(**asked)
    except (CheckpointError, ConfigError, DataError, RunError, OSError) as error:
        print(error, file=sys.stderr)
        return Exit.NEVER_RESTART if isinstance(error, ConfigError) else MENDABLE
    print(json.dumps(found))
    return 0
