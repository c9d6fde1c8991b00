"""A rank with a fault in a save: `tahoe drill` runs it instead of orchestrator.training.worker.

TAHOE_FAULT is the fault: `{"how": "die", "call": 3}` kills the process at the fourth write call,
counted over all saves of this attempt; with `"full"` that call and all later ones raise ENOSPC.
"""

import errno
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import store
from orchestrator.training import worker


def main(arguments: Sequence[str]) -> int:
    """Run this rank; rank 0, which saves, with the fault."""
    fault = json.loads(os.environ["TAHOE_FAULT"])
    if fault and os.environ["RANK"] == "0":
        _hook_writes(_FailFrom(fault["call"], _kill_self if fault["how"] == "die" else _disk_full))
    return worker.main(arguments)


class _FailFrom:
    """Runs an action at the n-th call and all later ones, of all threads together."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._count, self._number, self._action = itertools.count(), number, action
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            is_due = next(self._count) >= self._number
        if is_due:
            self._action()


def _hook_writes(before_write: Callable[[], None]) -> None:
    """Call a function before each write, fsync and rename of a save."""

    def hooked(call: Callable[..., Any]) -> Callable[..., Any]:
        def hooked_call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name.startswith("checkpoint"):
                before_write()
            return call(*args, **kwargs)

        return hooked_call

    for owner, name in ((store.HashedFile, "write"), (os, "fsync"), (Path, "replace")):
        setattr(owner, name, hooked(getattr(owner, name)))


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
