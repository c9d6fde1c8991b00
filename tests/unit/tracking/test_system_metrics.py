"""What nodes note of themselves, and how it reaches MLflow; real processes and stores."""

import json

import pytest
from tracked_run import Eventually, StartProcess, TrackedRun

from orchestrator.run.node_times import node_name
from orchestrator.tracking.shipping.shipper import sync

DEADLINE_S = 60
# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def noted(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_node_is_watched_for_as_long_as_its_rank_lives(
    tracked: TrackedRun,
    start: StartProcess,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu/07")
    assert node_name() == "gpu_07"
    monkeypatch.delenv("SLURMD_NODENAME")
    tracked.configure(tracking={"system_metrics_interval_s": 0.2})
    monitor = start("-m", "orchestrator.tracking.shipping.system_metrics", tracked.run.path)
    file = tracked.run.system_file(node_name())
    eventually(lambda: len(noted(file)) > 6)
    assert monitor.communicate(timeout=DEADLINE_S) == ("", "")
    assert monitor.returncode == 0
    first = noted(file)[0]["metrics"]
    assert 0 <= first[f"system/{node_name()}/cpu_utilization_percentage"] <= 100
    assert 0 < first[f"system/{node_name()}/system_memory_usage_percentage"] < 100

    for step in range(
        1, 100
    ):  # more bytes than the nodes have: each file is read from its own place
        tracked.log(step, {"train/loss": 1.0})
    (tracked.run.system_dir / "metrics.jsonl").write_text(file.read_text().replace("system/", "x/"))
    sync(tracked.run.path)
    expected = tracked.logged_points()
    for record in noted(file):
        for key, value in record["metrics"].items():
            point = [(value, record["time_ms"])]  # the first of a second: a step is a second
            expected.setdefault((key, record["step"]), point)
            expected.setdefault((key.replace("system/", "x/"), record["step"]), point)
    assert tracked.mlflow_points() == expected

    later = {"step": 2_000_000_000, "time_ms": 5, "metrics": {"system/other/cpu": 50.0}}
    tracked.run.system_file("other").write_text(json.dumps(later) + "\n")
    sync(tracked.run.path)
    assert tracked.mlflow_points() == expected | {("system/other/cpu", 2_000_000_000): [(50.0, 5)]}
