"""The worker's side of `launch.torch_subprocess`: a request on stdin, a response on stdout.

python -m orchestrator.torch_workers.entry MODULE:FUNCTION < request.json
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TypeVar

from data_sharding.errors import UserError
from orchestrator.config.parse import ConfigError
from orchestrator.run.outcome import PROGRESS_FD, USER_ERROR, ExitCode

T = TypeVar("T")


def main(target: str) -> int:
    """Call a function with the request's values and print its result, and nothing else.

    Errors that a user can fix go to stderr, with exit codes of their own.
    """
    response = os.dup(1)
    # What a user's network or a library prints is no part of the response, nor of an error.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    module, _, function = target.partition(":")
    call = getattr(import_module(f"orchestrator.{module}"), function)
    try:
        result = call(**json.load(sys.stdin))
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return ExitCode.FAILED_PERMANENTLY if isinstance(error, ConfigError) else USER_ERROR
    with os.fdopen(response, "w") as stdout:
        json.dump(result, stdout)
    return 0


def report_progress(items: Iterable[T], total: int, name: str) -> Iterator[T]:
    """Pass items on, and report their number now and then to the stderr of the caller's process."""
    fd = int(os.environ.get(PROGRESS_FD, "-1"))
    is_terminal = fd >= 0 and os.isatty(fd)
    reported_s, interval_s = time.monotonic(), 0.5 if is_terminal else 10.0
    for number, item in enumerate(items, 1):
        yield item
        if fd >= 0 and time.monotonic() - reported_s >= interval_s:
            reported_s, text = time.monotonic(), f"{name}: {100 * number // total} % evaluated"
            with suppress(OSError):  # the reader has gone
                os.write(fd, (f"\r{text}\033[K" if is_terminal else f"{text}\n").encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
