"""An MLflow server with injected faults, for `tahoe drill`.

A proxy in front of MLflow's own server forwards every request. A fault is injected into the next
request, whatever it is.
"""

import http.client
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.drill.faults import Fault
from orchestrator.launch.local_launcher import free_port
from orchestrator.run.rundir import RunError

_DOWN_S, _SLOW_S = 1.0, 1.0
_START_TIMEOUT_S, _REQUEST_TIMEOUT_S = 90, 60
_HOP_HEADERS = ("connection", "host", "transfer-encoding", "content-length", "server", "date")


class FaultQueue:
    """Faults in the order in which requests meet them; the threads of the proxy share it."""

    def __init__(self) -> None:
        self.due, self.done = deque[Fault](), deque[Fault]()
        self._lock = threading.Lock()
        self._down_until_s = 0.0

    def next_fault(self) -> str | None:
        """Return the fault of the request that arrives now."""
        with self._lock:
            now_s = time.monotonic()
            if now_s < self._down_until_s:
                return "down"
            if not self.due:
                return None
            fault = self.due.popleft()
            self.done.append(fault)
            if fault.mlflow_fault == "down":
                self._down_until_s = now_s + _DOWN_S
            return fault.mlflow_fault


@contextmanager
def faulty_mlflow_server(database: Path, log: Path) -> Iterator[tuple[str, FaultQueue]]:
    """Serve an SQLite file through MLflow; yield the URL and the queue of faults."""
    with _mlflow_server(database, log) as port:
        faults = FaultQueue()
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(port, faults))
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}", faults
        finally:
            proxy.shutdown()
            proxy.server_close()
            thread.join()


@contextmanager
def _mlflow_server(database: Path, log: Path) -> Iterator[int]:
    """Run MLflow's server; yield its port."""
    from orchestrator.tracking.mlflow_ui.serve import command, environment

    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(f"sqlite:///{database}", port=port),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for_health(process, port, log)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_health(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until_s = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            if _request(port, "GET", "/health", {}, b"").status == http.client.OK:
                return
        except OSError:
            time.sleep(0.1)
    raise RunError(
        "the MLflow server did not start, so the drill was not run", value=log, hint=f"See {log}."
    )


class _Response(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


def _request(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> _Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return _Response(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def _handler(port: int, faults: FaultQueue) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = faults.next_fault()
            if fault == "down":
                return  # the connection is closed without a response
            if fault == "error":
                self.send_error(500, "injected by tahoe drill")
                return
            if fault == "slow":
                time.sleep(_SLOW_S)
            headers = _end_to_end(self.headers.items())
            response = _request(port, self.command, self.path, headers, body)
            if fault != "reply lost":
                self.send_response(response.status)
                for name, value in _end_to_end(response.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815 (http.server's)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's)
            pass

    return Handler


def _end_to_end(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _HOP_HEADERS}
