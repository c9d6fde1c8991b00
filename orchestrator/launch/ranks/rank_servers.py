"""Start the ranks of a sweep's runs from processes that have imported torch already.

The other side is `orchestrator.training.rank_server`.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Self

from orchestrator.config.schema import Config
from orchestrator.launch.ranks.rank_process import ForkedRank, rank_environ
from orchestrator.run.rundir import RunDir

_TORCH, _MLFLOW = "orchestrator.training.train", "orchestrator.tracking.mlflow_store.run"


class RankServers:
    """One server for each rank, kept from run to run."""

    def __init__(self) -> None:
        self._servers: dict[int, _RankServer] = {}
        self._environ = dict(os.environ)  # Hydra changes it while it composes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers.values():
            server.close()

    def __bool__(self) -> bool:
        """Check whether servers have been started."""
        return bool(self._servers)

    def prepare(self, config: Config) -> None:
        """Start the servers of a local run, which begin to import."""
        if config.launcher.name != "local":
            return
        for rank in range(config.launcher.nproc_per_node):
            self._server(config, rank)

    def start_rank(
        self,
        run: RunDir,
        config: Config,
        rank: int,
        environ: Mapping[str, str],
        files: Sequence[IO[bytes] | int],
    ) -> ForkedRank:
        """Fork a rank of a run.

        Args:
            environ: the variables of the run.
            files: the files for its output, and for the lock on the run.
        """
        request = {"run": str(run.path), "environ": environ}
        return self._server(config, rank).fork(request, files)

    def _server(self, config: Config, rank: int) -> "_RankServer":
        """Return the server of a rank; start it if there is none, or one for another config."""
        environ, server = self._environ | rank_environ(config, rank), self._servers.get(rank)
        if server and server.environ == environ and not server.has_ended:
            return server
        if server:
            server.close()
        # Rank 0 starts the shipper.
        modules = (_TORCH, _MLFLOW) if rank == 0 and config.tracking.enabled else (_TORCH,)
        self._servers[rank] = _RankServer(environ, modules)
        return self._servers[rank]


class _RankServer:
    def __init__(self, environ: Mapping[str, str], modules: Sequence[str]) -> None:
        self.environ = environ
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        module, fd = "orchestrator.training.rank_server", theirs.fileno()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(fd), *modules],
                env=environ,
                stdin=subprocess.DEVNULL,
                pass_fds=[fd],
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """End the server, but no rank: those are stopped by the end of their stdin."""
        self._channel.close()
        self._process.kill()
        self._process.wait()

    def fork(self, request: Mapping[str, Any], files: Sequence[IO[bytes] | int]) -> ForkedRank:
        stdin, ours = os.pipe()
        fds = [file if isinstance(file, int) else file.fileno() for file in files]
        with suppress(BrokenPipeError):  # it has just ended, which the rank finds
            socket.send_fds(self._channel, [json.dumps(request).encode()], [stdin, *fds])
        os.close(stdin)
        return ForkedRank(self._channel, ours)
