"""A copy of this process's output in a file, beside the console that another launcher shows."""

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_FLUSH_S = 5.0  # for the last lines, at the end of this process
# Signals are for the rank, which may still print; `tee` ends with the rank's end of the pipe.
_TEE = 'trap "" INT TERM HUP USR1 USR2; exec tee -a "$0"'


def copy_output(file: Path) -> None:
    """Append all that this process and its children write from now on to a file as well.

    A process beside this one copies it: the traces of a crash or of the hang watchdog are written
    when no Python runs any more.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    tee = subprocess.Popen(
        ["/bin/sh", "-c", _TEE, str(file)], stdin=subprocess.PIPE, start_new_session=True
    )
    assert tee.stdin is not None
    console = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    for fd in (1, 2):
        os.dup2(tee.stdin.fileno(), fd)
    tee.stdin.close()

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, saved in zip((1, 2), console, strict=True):
            os.dup2(saved, fd)
        with suppress(subprocess.TimeoutExpired):  # a child still writes
            tee.wait(_FLUSH_S)

    atexit.register(end)
