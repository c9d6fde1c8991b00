"""Fork the ranks of a sweep's runs from a process that has imported torch already.

    python -m orchestrator.training.rank_server FD MODULE...

Importing torch and MLflow takes longer than a short run. A server is started with the environment
of a rank. It imports modules, but starts no thread, touches no device and computes nothing, so that
the ranks that it forks are like others. FD is a socket to `launch.ranks`: a request for a rank
comes with the files for its stdin, its output and the run's lock, and is answered by the process
id, and by the exit code when the rank has ended.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from orchestrator.gc_frozen import gc_frozen
from orchestrator.training import worker
from orchestrator.training.forked_process import exit_forked

_MAX_REQUEST_BYTES, _NUM_FILES = 65536, 3


def main(arguments: Sequence[str]) -> int:
    """Serve until the other end of the socket is closed."""
    channel = socket.socket(fileno=int(arguments[0]))
    with gc_frozen():  # ranks share these objects for as long as nothing writes to them
        for module in arguments[1:]:
            import_module(module)
    while True:
        message, files, *_ = socket.recv_fds(channel, _MAX_REQUEST_BYTES, _NUM_FILES)
        if not message:
            return 0
        request = json.loads(message)
        if (pid := os.fork()) == 0:
            channel.close()
            exit_forked(_run_rank(files, request["run"], request["environ"]))
        for file in files:
            os.close(file)
        channel.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run_rank(files: Sequence[int], run: str, environ: Mapping[str, str]) -> int:
    """Run a rank in this process, which has just been forked."""
    stdin, output, _ = files  # the run's lock is held by every process that has its file open
    os.setsid()
    for old, new in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.close(stdin)
    os.close(output)
    os.environ.update(environ)
    return worker.main([run], may_fork=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
