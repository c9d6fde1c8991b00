"""A rank as a process of this machine, started by itself or forked from a server."""

import os
import signal
import socket
import subprocess
from contextlib import suppress
from typing import Self

from orchestrator.config.schema import Config


def rank_environ(config: Config, rank: int) -> dict[str, str]:
    """Return the variables of a rank that are the same in each attempt."""
    world_size = config.launcher.nproc_per_node
    threads = config.runtime.threads_per_rank or max(1, (os.cpu_count() or 1) // world_size)
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": str(threads),
        "TAHOE_LAUNCHER_PIPE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


class SpawnedRank(subprocess.Popen[bytes]):
    """A rank that the launcher has started."""

    def open_exit_fd(self) -> int:
        """Open a file that can be read from when the rank has ended."""
        return os.pidfd_open(self.pid)


class ForkedRank:
    """A rank that a server has forked, in the manner of a `subprocess.Popen`.

    Args:
        channel: the socket on which the server sends the process id and the exit code.
        stdin: the write end of the rank's stdin, whose end stops it.
    """

    def __init__(self, channel: socket.socket, stdin: int) -> None:
        self.returncode: int | None = None
        self._pid: int | None = None
        self._channel, self._stdin = channel, stdin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._stdin)

    def poll(self) -> int | None:
        """Return the exit code, or None while the rank runs."""
        while self.returncode is None and self._receive(socket.MSG_DONTWAIT):
            pass
        return self.returncode

    def wait(self) -> int:
        """Wait for the rank to end; return the exit code."""
        while self.returncode is None:
            self._receive(0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the rank has ended; wait for a server that is still importing."""
        while self._pid is None and self.returncode is None:
            self._receive(0)
        if self._pid is not None and self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def open_exit_fd(self) -> int:
        """Open a file that can be read from when the rank has ended, and once before."""
        return os.dup(self._channel.fileno())

    def _receive(self, flags: int) -> bool:
        """Receive a message; return False if there is none.

        The ranks of a server that was killed count as killed.
        """
        try:
            message = self._channel.recv(64, flags)
        except BlockingIOError:
            return False
        except ConnectionResetError:  # killed before it read the request
            message = b""
        if not message:
            self.returncode = -signal.SIGKILL
        elif self._pid is None:
            self._pid = int(message)
        else:
            self.returncode = int(message)
        return True
