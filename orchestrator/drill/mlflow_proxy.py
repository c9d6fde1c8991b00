"""An MLflow server whose answers fail as they are told to, for `tahoe drill`.

MLflow's own server, on an SQLite file, stands behind a proxy that passes everything on. A fault
falls on the next request, whatever that asks for.
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
from typing import Any

from orchestrator.drill.faults import Fault
from orchestrator.launch.local_launcher import free_port
from orchestrator.run.rundir import RunError

_DOWN_S, _SLOW_S = 1.0, 1.0
_START_S, _REQUEST_S = 90, 60
_NOT_PASSED_ON = ("connection", "host", "transfer-encoding", "content-length", "server", "date")


class Faults:
    """What is due, first come first served; threads of the proxy take from it."""

    def __init__(self) -> None:
        self.due, self.done = deque[Fault](), deque[Fault]()
        self._lock = threading.Lock()
        self._down_until_s = 0.0

    def next_fault(self) -> str | None:
        """Return what the request that comes now meets."""
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
def faulty_mlflow_server(store: Path, log: Path) -> Iterator[tuple[str, Faults]]:
    """Serve an SQLite file as long as the context lasts; yield the URL, and what fails there.

    Raises:
        RunError: the server does not come up.
    """
    with _mlflow(store, log) as port:
        faults = Faults()
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
def _mlflow(store: Path, log: Path) -> Iterator[int]:
    """Run MLflow's server; yield its port."""
    from orchestrator.tracking.mlflow_ui.serve import command, environment

    port = free_port()
    with log.open("wb") as said:
        process = subprocess.Popen(
            command(f"sqlite:///{store}", port=port),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        _wait(process, port, log)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < until_s:
        try:
            if _ask(port, "GET", "/health", {}, b"").status == http.client.OK:
                return
        except OSError:
            time.sleep(0.1)
    raise RunError(f"MLflow's server does not come up, so nothing was hurt. {log} says why.")


class _Answer:
    """An answer of MLflow's, whole."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = answer.status, answer.getheaders(), answer.read()


def _ask(port: int, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_S)
    try:
        connection.request(method, path, body, headers)
        return _Answer(connection.getresponse())
    finally:
        connection.close()


def _handler(port: int, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = faults.next_fault()
            if fault == "down":
                return  # the connection is closed without an answer
            if fault == "error":
                self.send_error(500, "as the drill wants it")
                return
            if fault == "slow":
                time.sleep(_SLOW_S)
            answer = _ask(port, self.command, self.path, _passed_on(self.headers.items()), body)
            if fault != "reply lost":
                self.send_response(answer.status)
                for name, value in _passed_on(answer.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 (http.server's)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's)
            pass

    return Handler


def _passed_on(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers if name.lower() not in _NOT_PASSED_ON}
