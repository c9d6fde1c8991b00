"""Serve MLflow's own user interface on a tracking store."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from orchestrator.redact import one_line_error, redact_urls
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.tracking.mlflow_store.client import artifacts_dir, open_read_only, sqlite_file
from orchestrator.tracking.mlflow_ui.links import experiment_links, ui_links
from orchestrator.tracking.mlflow_ui.views import TRAINING

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def command(tracking_uri: str, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Return the command that serves a database store and the artifacts of its runs.

    On other interfaces than the loopback, the server only answers requests to this machine's names:
    https://mlflow.org/docs/latest/self-hosting/security/network
    """
    argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri]
    argv += ["--host", host, "--port", str(port), "--workers", "1"]
    file = sqlite_file(tracking_uri)
    if file is not None:  # otherwise uploads would end up in the working directory
        argv += ["--artifacts-destination", artifacts_dir(file).as_uri()]
    if host not in LOOPBACK:
        names = sorted({host, socket.gethostname(), socket.getfqdn(), *LOOPBACK[:2]})
        allowed = [pattern for name in names for pattern in (name, f"{name}:*")]
        argv += ["--allowed-hosts", ",".join(allowed)]
    return argv


def serve_ui(
    tracking_uri: str, port: int = 5000, host: str = "127.0.0.1", paths: Sequence[Path] = ()
) -> None:
    """Print links to the pages of runs, and become the server that serves them.

    A server that runs elsewhere is only linked to.

    Args:
        paths: runs and sweeps to link to; without any, the experiments.
    """
    if tracking_uri.startswith(("http://", "https://")):
        address = redact_urls(tracking_uri).rstrip("/")
        links = ui_links(address, paths, MlflowClient(tracking_uri=tracking_uri))
        print("\n".join(links or [f"{address}/#/experiments?{TRAINING}"]))
        return
    shown_host = socket.gethostname() if host == "0.0.0.0" else host  # noqa: S104 (compared only)
    address = f"http://{shown_host}:{port}"
    try:
        client = open_read_only(tracking_uri)
        _check_port(host, port)
        for link in ui_links(address, paths, client) or experiment_links(client, address):
            print(link, flush=True)
    except (MlflowException, OSError) as error:
        uri = redact_urls(tracking_uri)
        raise RunError(f"no pages of {uri}: {one_line_error(error)}", value=uri) from error
    argv = command(tracking_uri, host, port)
    os.execve(argv[0], argv, environment())  # noqa: S606 (no shell, on purpose)


def tracking_uri_of(paths: Sequence[Path]) -> str:
    """Return the store that runs were sent to; without runs, that of the working directory."""
    states = (RunDir(path).read_json(RunDir(path).mlflow_file) or {} for path in paths)
    uris = sorted({str(state["tracking_uri"]) for state in states if "tracking_uri" in state})
    if len(uris) > 1:
        raise RunError(
            f"these runs are in different stores: {' and '.join(map(redact_urls, uris))}",
            value=uris,
            hint="Name one with --uri.",
        )
    return uris[0] if uris else "sqlite:///mlflow.db"


def environment() -> dict[str, str]:
    """Return the environment of the server, without its jobs, which Tahoe does not use."""
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise RunError(f"no port {port}", value=port, hint="Ports go from 1 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(
                f"cannot serve on {host}, port {port}: {error.strerror}",
                value=port,
                hint=f"Choose another port, for example `--port {port + 1}`.",
            ) from None
