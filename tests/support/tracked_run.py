"""A run directory without a training, and its MLflow run."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.run.rundir import RunDir

Points = dict[tuple[str, int], list[tuple[float, int]]]
StartProcess = Callable[..., "subprocess.Popen[str]"]
Eventually = Callable[[Callable[[], object]], None]


@dataclass
class TrackedRun:
    """A run directory as rank 0 and the launcher write it, and its MLflow run."""

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

    def write_outcome(self, outcome: str, attempt: int = 1, reason: str = "") -> None:
        self.run.write_json(
            self.run.outcome_file,
            {"outcome": outcome, "step": 1, "attempt": attempt, "reason": reason},
        )

    @property
    def mlflow_state(self) -> dict[str, Any]:
        return self.run.read_json(self.run.mlflow_file) or {}

    @property
    def is_shipped(self) -> bool:
        return self.num_shipped_bytes == self.run.metrics_file.stat().st_size

    @property
    def num_shipped_bytes(self) -> int:
        return int(self.mlflow_state.get("shipped_bytes", {}).get("metrics.jsonl", 0))

    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def mlflow_run(self) -> Run:
        """The MLflow run of this run directory; there must be only one."""
        client = self.client()
        everywhere = [known.experiment_id for known in client.search_experiments()]
        runs = client.search_runs(everywhere)
        (found,) = [run for run in runs if run.data.tags.get("tahoe.run_id") == self.run.id]
        return found

    def mlflow_points(self) -> Points:
        """Every row of the store: (key, step) -> [(value, time_ms), ...]."""
        found, client, rows = self.mlflow_run(), self.client(), Points()
        for key in found.data.metrics:
            for metric in client.get_metric_history(found.info.run_id, key):
                place = rows.setdefault((metric.key, metric.step), [])
                place.append((metric.value, metric.timestamp))
        return rows

    def logged_points(self) -> Points:
        """What the store should hold by the words of the file: the first value of each step."""
        expected = Points()
        for line in self.run.metrics_file.read_text().splitlines():
            record = json.loads(line)
            for key, value in record["metrics"].items():
                expected.setdefault((key, record["step"]), [(value, record["time_ms"])])
        return expected


CreateTrackedRun = Callable[..., TrackedRun]
