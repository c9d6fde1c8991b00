"""A run directory without a training, and a tracking store of its own, made cheaply."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tracked_run import CreateTrackedRun, TrackedRun

from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store.client import open_client

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; making its tables takes seconds."""
    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    with open_client(f"sqlite:///{file}"):
        return file


@pytest.fixture
def create_tracked_run(tmp_path: Path) -> CreateTrackedRun:
    """Makes run directories, in a place with a space; by default in a store without tables."""

    def make(name: str = "run-1", uri: str | None = None) -> TrackedRun:
        run = RunDir(tmp_path / "my runs" / name)
        run.path.mkdir(parents=True)
        run.metrics_file.touch()
        tracked = TrackedRun(run, uri or f"sqlite:///{tmp_path}/my store/mlflow.db")
        tracked.configure()
        run.write_json(run.identity_file, {"id": name, "uid": f"uid-{name}", "created_s": 1.7e9})
        return tracked

    return make


@pytest.fixture
def store(tmp_path: Path, migrated: Path) -> str:
    """The URI of a store with tables, as `create_tracked_run` uses it."""
    file = tmp_path / "my store" / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(migrated, file)
    return f"sqlite:///{file}"


@pytest.fixture
def tracked(create_tracked_run: CreateTrackedRun, store: str) -> TrackedRun:
    """A run directory before its first attempt."""
    return create_tracked_run(uri=store)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts Python processes away from the repository, and leaves none behind."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def begin(
        *arguments: object, env: dict[str, str] | None = None, **options: Any
    ) -> "subprocess.Popen[str]":
        command = [sys.executable, *map(str, arguments)]
        own = environment | (env or {})
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=own, text=True, **{**pipes, **options}
        )
        started.append(process)
        return process

    with _all_killed(started):
        yield begin


@contextmanager
def _all_killed(started: "list[subprocess.Popen[str]]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def ship(start: Callable[..., Any]) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts a shipper whose stdin is a pipe, as rank 0 does."""

    def begin(tracked: TrackedRun, *options: object, **settings: Any) -> "subprocess.Popen[str]":
        module = ("-m", "orchestrator.tracking.shipping.shipper")
        process: subprocess.Popen[str] = start(*module, tracked.run.path, *options, **settings)
        return process

    return begin


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits for what another process does."""

    def wait(condition: Callable[[], object]) -> None:
        until_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < until_s, "it did not happen in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
