"""A run directory without a training, and a tracking store of its own, made cheaply."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store.client import MlflowClient, Run, open_client

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 60.0
Stored = dict[tuple[str, int], list[tuple[float, int]]]


@dataclass
class Scene:
    """A run directory as rank 0 and the launcher write it, and what MLflow shows of it."""

    run: RunDir
    uri: str
    clock_ms: int = 1_700_000_000_000

    def configure(self, **sections: Any) -> None:
        config: dict[str, Any] = {
            "seed": 1,
            "model": {"name": "alexnet", "kwargs": {}, "published": None},
            "data": {"name": "digits", "url": "/data/digits", "eval_protocol": "center-28-of-28"},
            "recipe": {"epochs": 90, "schedule": [30, 60], "ema": None},
            "tracking": {"uri": self.uri, "experiment": "tests", "flush_interval_s": 0.05},
        }
        for name, section in sections.items():
            config[name] = {**config[name], **section}
        self.run.write_config(config)

    def log(self, step: int, metrics: dict[str, float], attempt: int = 1) -> None:
        """Append a record, as rank 0 does."""
        self.clock_ms += 10
        record = {"step": step, "time_ms": self.clock_ms, "attempt": attempt, "metrics": metrics}
        self.append(json.dumps(record) + "\n")

    def append(self, text: str) -> None:
        with self.run.metrics_file.open("a") as file:
            file.write(text)

    def judge(self, outcome: str, attempt: int = 1, reason: str = "") -> None:
        self.run.write_json(
            self.run.outcome_file,
            {"outcome": outcome, "step": 1, "attempt": attempt, "reason": reason},
        )

    @property
    def mark(self) -> dict[str, Any]:
        return self.run.read_json(self.run.mlflow_file) or {}

    @property
    def is_shipped(self) -> bool:
        return self.num_shipped_bytes == self.run.metrics_file.stat().st_size

    @property
    def num_shipped_bytes(self) -> int:
        return int(self.mark.get("shipped_bytes", {}).get("metrics.jsonl", 0))

    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def shown(self) -> Run:
        """The MLflow run of this run directory; there must be only one."""
        client = self.client()
        everywhere = [known.experiment_id for known in client.search_experiments()]
        runs = client.search_runs(everywhere)
        (found,) = [run for run in runs if run.data.tags.get("tahoe.run_id") == self.run.id]
        return found

    def stored(self) -> Stored:
        """Every row of the store: (key, step) -> [(value, time_ms), ...]."""
        found, client, rows = self.shown(), self.client(), Stored()
        for key in found.data.metrics:
            for metric in client.get_metric_history(found.info.run_id, key):
                place = rows.setdefault((metric.key, metric.step), [])
                place.append((metric.value, metric.timestamp))
        return rows

    def logged(self) -> Stored:
        """What the store should hold by the words of the file: the first value of each step."""
        expected = Stored()
        for line in self.run.metrics_file.read_text().splitlines():
            record = json.loads(line)
            for key, value in record["metrics"].items():
                expected.setdefault((key, record["step"]), [(value, record["time_ms"])])
        return expected


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store; making its tables takes seconds."""
    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    with open_client(f"sqlite:///{file}"):
        return file


@pytest.fixture
def make_scene(tmp_path: Path) -> Callable[..., Scene]:
    """Makes run directories, in a place with a space; by default in a store without tables."""

    def make(name: str = "run-1", uri: str | None = None) -> Scene:
        run = RunDir(tmp_path / "my runs" / name)
        run.path.mkdir(parents=True)
        run.metrics_file.touch()
        scene = Scene(run, uri or f"sqlite:///{tmp_path}/my store/mlflow.db")
        scene.configure()
        run.write_json(run.identity_file, {"id": name, "uid": f"uid-{name}", "created_s": 1.7e9})
        return scene

    return make


@pytest.fixture
def store(tmp_path: Path, migrated: Path) -> str:
    """The URI of a store with tables, as `make_scene` uses it."""
    file = tmp_path / "my store" / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(migrated, file)
    return f"sqlite:///{file}"


@pytest.fixture
def scene(make_scene: Callable[..., Scene], store: str) -> Scene:
    """A run directory before its first attempt."""
    return make_scene(uri=store)


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

    def begin(scene: Scene, *options: object, **settings: Any) -> "subprocess.Popen[str]":
        module = ("-m", "orchestrator.tracking.shipping.shipper")
        process: subprocess.Popen[str] = start(*module, scene.run.path, *options, **settings)
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
