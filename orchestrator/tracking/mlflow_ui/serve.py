"""MLflow's own user interface on a tracking store."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from orchestrator.redact import one_line_error, redact_urls
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.tracking.mlflow_store.client import (
    MlflowClient,
    MlflowException,
    artifacts_dir,
    open_read_only,
    sqlite_file,
)
from orchestrator.tracking.mlflow_ui.links import LINEAGE, ui_links
from orchestrator.tracking.mlflow_ui.views import TRAINING, table_page

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def command(tracking_uri: str, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """Return the command that serves a database store and the artifacts of its runs.

    On another interface than the loopback, the server answers requests to this machine's names
    only: https://mlflow.org/docs/latest/self-hosting/security/network
    """
    argv = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri]
    argv += ["--host", host, "--port", str(port), "--workers", "1"]
    file = sqlite_file(tracking_uri)
    if file is not None:  # otherwise what others upload would land in the working directory
        argv += ["--artifacts-destination", artifacts_dir(file).as_uri()]
    if host not in LOOPBACK:
        names = {host, socket.gethostname(), socket.getfqdn(), *LOOPBACK[:2]}
        allowed = [name for known in sorted(names) for name in (known, f"{known}:*")]
        argv += ["--allowed-hosts", ",".join(allowed)]
    return argv


def serve_ui(
    tracking_uri: str, port: int = 5000, host: str = "127.0.0.1", paths: Sequence[Path] = ()
) -> None:
    """Print where runs can be seen, and become the server that shows them.

    A server that runs elsewhere is only named.

    Args:
        paths: of runs and sweeps, whose own pages are printed.

    Raises:
        RunError: there is no store yet, the port is taken, or MLflow does not know a run.
    """
    if tracking_uri.startswith(("http://", "https://")):
        address = redact_urls(tracking_uri).rstrip("/")
        client = MlflowClient(tracking_uri=tracking_uri)
        print(
            "\n".join(ui_links(address, paths, client) or [f"{address}/#/experiments?{TRAINING}"])
        )
        return
    shown_host = socket.gethostname() if host == "0.0.0.0" else host  # noqa: S104 (compared only)
    address = f"http://{shown_host}:{port}"
    try:
        client = open_read_only(tracking_uri)
        _check_port(host, port)
        for link in ui_links(address, paths, client) or links(client, address):
            print(link, flush=True)
    except (MlflowException, OSError) as error:
        shown = redact_urls(tracking_uri)
        raise RunError(f"no pages of {shown}: {one_line_error(error)}") from error
    _exec_server(command(tracking_uri, host, port))


def tracking_uri_of(paths: Sequence[Path]) -> str:
    """Return the store that runs were sent to; of none, the one of the working directory.

    Raises:
        RunError: they are in different ones.
    """
    marks = (RunDir(path).read_json(RunDir(path).mlflow_file) or {} for path in paths)
    known = {str(mark["tracking_uri"]) for mark in marks if "tracking_uri" in mark}
    if len(known) > 1:
        shown = " and ".join(sorted(map(redact_urls, known)))
        raise RunError(f"these runs are in different stores: {shown}. Name one with --uri.")
    return known.pop() if known else "sqlite:///mlflow.db"


def links(client: MlflowClient, server_url: str) -> list[str]:
    """Return two lines for each experiment: where its runs are shown, and those with a paper."""
    found = client.search_experiments()
    used = [known for known in found if known.experiment_id != "0"] or found  # 0: MLflow's own
    lines = []
    for known in used:
        lines.append(f"{table_page(client, server_url, known.experiment_id)}  {known.name}")
        lineage = table_page(client, server_url, known.experiment_id, LINEAGE)
        lines.append(f"{lineage}  {known.name}: the lineage")
    return lines


def environment() -> dict[str, str]:
    """Return what the server is to be started with.

    Tahoe uses no jobs of the server, which would run in processes of their own.
    """
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _exec_server(argv: list[str]) -> NoReturn:
    os.execve(argv[0], argv, environment())  # noqa: S606 (no shell, on purpose)


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 2**16:
        raise RunError(f"there is no port {port}: they go from 1 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(
                f"cannot serve on {host}, port {port}: {error.strerror}. Choose another port, "
                f"for example `--port {port + 1}`."
            ) from None
