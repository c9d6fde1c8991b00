"""A real MLflow server with passwords and TLS, behind a proxy: all by MLflow's own environment.

https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/
"""

import os
import select
import signal
import socket
import socketserver
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cli_runner import Tahoe
from tracked_run import CreateTrackedRun

from orchestrator.tracking.mlflow_ui.serve import environment

DEADLINE_S = 100
PASSWORD = "correct horse battery"
# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


class Tunnel(socketserver.StreamRequestHandler):
    """One CONNECT request: RFC 9110, section 9.3.6."""

    def handle(self) -> None:
        place = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass  # headers
        self.server.places.append(place)
        host, port = place.split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {self.connection: there, there: self.connection}
            with suppress(ConnectionResetError):  # which is how some clients hang up
                while all(self.pass_on(end, ends) for end in select.select([*ends], [], [])[0]):
                    pass

    def pass_on(self, end: socket.socket, ends: dict[socket.socket, socket.socket]) -> bool:
        """Pass on what has come from one end; say whether anything may follow."""
        data = end.recv(65536)
        ends[end].sendall(data)
        return bool(data)


@pytest.fixture
def proxy():
    """A proxy on a port of its own; `places` are those it was asked for."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as server:
        server.daemon_threads, server.places = True, []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def authority(tmp_path):
    """The certificate of an authority of our own, as a file, and of a server, as options."""
    ours = trustme.CA()
    ours.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = ours.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    return tmp_path / "ca.pem", "--ssl-keyfile key.pem --ssl-certfile cert.pem"


@pytest.fixture
def url(start, store, free_port, authority, eventually, tmp_path):
    """The address of a server that has one user, `admin`."""
    own = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
    }
    options = ("--workers", 1, "--app-name", "basic-auth", "--uvicorn-opts", authority[1])
    with (tmp_path / "server.log").open("w") as log:
        process = start(
            *("-m", "mlflow", "server", "--backend-store-uri", store, "--port", free_port),
            *("--artifacts-destination", tmp_path / "artifacts", *options),
            env=environment() | own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    eventually(lambda: process.poll() is not None or "startup complete" in log_of(tmp_path))
    assert process.poll() is None, log_of(tmp_path)
    yield f"https://127.0.0.1:{free_port}"
    os.killpg(process.pid, signal.SIGKILL)


def log_of(place: Path) -> str:
    return (place / "server.log").read_text()


def test_a_password_a_certificate_and_a_proxy(
    url,
    store: str,
    create_tracked_run: CreateTrackedRun,
    authority,
    proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracked = create_tracked_run("secured", uri=url)
    tracked.run.begin_attempt()
    for step in range(1, 30):
        tracked.log(step, {"a": step / 3})
    tracked.write_outcome("finished")
    sync = ("sync", str(tracked.run.path))
    tahoe = Tahoe(tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")

    untrusted = tahoe(*sync, check=False)
    assert untrusted.returncode == 1
    assert "certificate verify failed" in untrusted.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority[0]))

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong guess")
    refused = tahoe(*sync, check=False)
    assert refused.returncode == 1
    assert "not authenticated" in refused.stderr
    assert "a wrong guess" not in refused.stderr

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    tahoe(*sync)
    assert set(proxy.places) == {url.removeprefix("https://")}
    tracked.uri = store  # what the server has written
    assert tracked.mlflow_points() == tracked.logged_points()
    assert tracked.mlflow_run().info.status == "FINISHED"
    assert tracked.mlflow_run().info.artifact_uri.startswith("mlflow-artifacts:")
    assert list((tmp_path / "artifacts").rglob("config.yaml"))
    assert tahoe("ui", "--uri", url, str(tracked.run.path)).stdout.startswith(
        f"{url}/#/experiments/"
    )
    for file in tracked.run.path.rglob("*"):
        assert not file.is_file() or PASSWORD not in file.read_text(errors="replace")
