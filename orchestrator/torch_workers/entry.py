"""Answer `launch.torch_subprocess`: a request on stdin, JSON on stdout."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from data_sharding.errors import DataError
from orchestrator.checkpoint.store import CheckpointError
from orchestrator.config.parse import ConfigError
from orchestrator.run.exit_status import MENDABLE, TELL_FD, ExitCode
from orchestrator.run.rundir import RunError

T = TypeVar("T")


def json_entry_point(work: Callable[..., Mapping[str, Any]]) -> int:
    """Print what the work returns for the arguments that were asked with.

    What the user can mend is told on stderr, with exit codes of its own.
    """
    asked = json.load(sys.stdin)
    try:
        found = work(**asked)
    except (CheckpointError, ConfigError, DataError, RunError, OSError) as error:
        print(error, file=sys.stderr)
        return ExitCode.NEVER_RESTART if isinstance(error, ConfigError) else MENDABLE
    print(json.dumps(found))
    return 0


def counted(work: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass work on, and say now and then to who asked how much of it is done."""
    fd = int(os.environ.get(TELL_FD, "-1"))
    is_terminal = fd >= 0 and os.isatty(fd)
    told_s, every_s = time.monotonic(), 0.5 if is_terminal else 10.0
    for done, piece in enumerate(work, 1):
        yield piece
        if fd >= 0 and time.monotonic() - told_s >= every_s:
            told_s, text = time.monotonic(), f"{what}: {100 * done // total} % judged"
            with suppress(OSError):  # nobody reads any more
                os.write(fd, (f"\r{text}\033[K" if is_terminal else f"{text}\n").encode())
