"""What MLflow holds of a run, beside what the run's own file says."""

import math
from collections import Counter

from orchestrator.run.metric_stream import MetricTail, as_stored
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store.client import open_client


def count_missing_and_duplicate_points(run: RunDir, tracking_uri: str) -> tuple[int, int]:
    """Return how many points of metrics.jsonl are not in the store, and how many twice or wrong."""
    tail = MetricTail(run.metrics_file)
    logged = {
        (point.key, point.step): as_stored(point.value)
        for batch, _ in tail.batches(0, 1000)
        for point in batch
    }
    run_id = (run.read_json(run.mlflow_file) or {})["run_id"]
    held, values = Counter[tuple[str, int]](), dict[tuple[str, int], float]()
    with open_client(tracking_uri) as client:
        for key in {key for key, _ in logged}:
            for point in client.get_metric_history(run_id, key):
                held[point.key, point.step] += 1
                values[point.key, point.step] = point.value
    lost = sum(name not in held for name in logged)
    doubled = sum(count - 1 for count in held.values())
    wrong = sum(not _same(values[name], value) for name, value in logged.items() if name in values)
    return lost, doubled + wrong


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
