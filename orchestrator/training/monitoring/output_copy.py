"""A copy of this process's output in a file, beside the console that another launcher shows."""

import atexit
import fcntl
import os
import subprocess
import sys
import termios
import time
from pathlib import Path

_FLUSH_S, _POLL_S = 5.0, 0.01  # for the last lines, at the end of this process
# Signals are for the rank, which may still print; `tee` ends with the last writer of the pipe.
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
    sys.stdout.flush()
    sys.stderr.flush()
    for fd in (1, 2):
        os.dup2(tee.stdin.fileno(), fd)
    tee.stdin.close()
    tee.returncode = 0  # it is left behind: a child, as multiprocessing's, may write until its end
    atexit.register(_wait_until_copied)


def _wait_until_copied() -> None:
    """Wait until the pipe is empty: the end of this process may end its container."""
    sys.stdout.flush()
    sys.stderr.flush()
    deadline_s = time.monotonic() + _FLUSH_S
    while time.monotonic() < deadline_s:
        in_pipe = fcntl.ioctl(1, termios.FIONREAD, bytes(4))
        if not int.from_bytes(in_pipe, sys.byteorder):
            break
        time.sleep(_POLL_S)
