"""A rank that is hurt in a save: `tahoe drill` starts it in place of orchestrator.training.worker.

TAHOE_FAULT says how: `{"how": "die", "call": 3}` ends the process at the fourth call that writes,
counted over all saves of this attempt; `"full"` lets it and all later ones fail for want of room.
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
    """Run this rank, hurt if it is the one that saves."""
    wanted = json.loads(os.environ["TAHOE_FAULT"])
    if wanted and os.environ["RANK"] == "0":
        watch(_From(wanted["call"], _die if wanted["how"] == "die" else _run_out))
    return worker.main(arguments)


class _From:
    """Calls something at the n-th call and all later ones, whichever thread makes them."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._count, self._number, self._action = itertools.count(), number, action
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            is_due = next(self._count) >= self._number
        if is_due:
            self._action()


def watch(before_write: Callable[[], None]) -> None:
    """Let something be called before each piece, each sync and each publication of a save."""

    def announced(call: Callable[..., Any]) -> Callable[..., Any]:
        def with_notice(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread().name.startswith("checkpoint"):
                before_write()
            return call(*args, **kwargs)

        return with_notice

    for owner, name in ((store.HashedFile, "write"), (os, "fsync"), (Path, "replace")):
        setattr(owner, name, announced(getattr(owner, name)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run_out() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
