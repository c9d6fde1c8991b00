"""How long training waits for a metric to be logged, beside MLflow's own call; no server answers.

    python tests/benchmarks/logging_calls.py [DIRECTORY]

Each call records ten metrics of a step, as training does with its shipper beside it, which asks a
port where nobody listens. MLflow's client is asked to log the same asynchronously, into an SQLite
store that works.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from orchestrator.config.parse import to_dict
from orchestrator.launch.compose import compose
from orchestrator.run.rundir import RunDir
from orchestrator.training.monitoring.metric_log import MetricLog

NUM_CALLS = 5000
PAUSE_S = 0.001
METRICS = {f"train/metric_{number}": number / 7 for number in range(10)}


def measure(log: Callable[[int], object]) -> list[float]:
    """Return the microseconds of each call; there is a pause between them, as a step is one."""
    taken = []
    for step in range(NUM_CALLS):
        start_s = time.perf_counter()
        log(step)
        taken.append(1e6 * (time.perf_counter() - start_s))
        time.sleep(PAUSE_S)
    return taken


def with_tahoe(place: Path) -> list[float]:
    (composed,) = compose(["tracking.uri=http://127.0.0.1:9"])
    run = RunDir(place / "run")
    run.path.mkdir()
    run.write_config(to_dict(composed.config))
    command = [sys.executable, "-m", "orchestrator.tracking.shipping.shipper", run.path]
    shipper = subprocess.Popen(
        [*command, "--drain-timeout-s", "1"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        with MetricLog(run.metrics_file, attempt=1) as log:
            return measure(lambda step: log.log(step, METRICS))
    finally:
        shipper.communicate(timeout=60)


def with_mlflow(place: Path) -> list[float]:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
    with mlflow.start_run():
        return measure(lambda step: mlflow.log_metrics(METRICS, step, synchronous=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path(tempfile.gettempdir()))
    place = Path(tempfile.mkdtemp(dir=parser.parse_args().directory))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {NUM_CALLS} calls, on {place}")
    try:
        for name, run in (("tahoe", with_tahoe), ("mlflow, asynchronous", with_mlflow)):
            taken = run(place)
            p99 = statistics.quantiles(taken, n=100)[-1]
            median, most = statistics.median(taken), max(taken)
            print(
                f"{name:22} median {median:6.1f} us  p99 {p99:6.1f}  most {most:8.1f}", flush=True
            )
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
