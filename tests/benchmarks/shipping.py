"""Whether eight runs at once reach an MLflow server as fast as they log, beside MLflow's client.

    python tests/benchmarks/shipping.py [--runs 8] [--metrics 50] [--every-s 0.5] [--seconds 60]

Each run logs so many metrics that often. Tahoe's runs write to their directories, and a shipper
process for each sends that on; MLflow's own are threads that wait for `log_batch`. Both, one after
the other, to a server on this machine with an SQLite store of its own. Printed are how long a call
keeps training waiting, how far behind the server is, and what it holds in the end.
"""

import argparse
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from mlflow.entities import Metric

from orchestrator.config.parse import to_dict
from orchestrator.drill.compare import count_missing_and_duplicate_points
from orchestrator.launch.compose import compose
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store.client import MlflowClient
from orchestrator.tracking.mlflow_ui.serve import command, environment
from orchestrator.training.monitoring.metric_log import MetricLog

Log = Callable[[int, dict[str, float]], object]


@contextmanager
def server(place: Path) -> Iterator[str]:
    """Run a server with one worker, and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = command(f"sqlite:///{place}/mlflow.db", port=port)
    with (place / "server.log").open("w") as log:
        process = subprocess.Popen(
            argv, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + 60
        while not _answers(url):
            assert time.monotonic() < until_s, (place / "server.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.read() == b"OK"
    except (urllib.error.URLError, OSError):
        return False


def log_regularly(log: Log, options: argparse.Namespace, calls_s: list[float]) -> None:
    """Log at the times of the schedule, or as soon after as the call before allows."""
    start_s = time.perf_counter()
    for step in range(round(options.seconds / options.every_s)):
        time.sleep(max(0.0, start_s + step * options.every_s - time.perf_counter()))
        before_s = time.perf_counter()
        log(
            step, {f"train/metric_{number}": step + number / 7 for number in range(options.metrics)}
        )
        calls_s.append(time.perf_counter() - before_s)


def in_threads(logs: list[Log], options: argparse.Namespace) -> tuple[list[float], float]:
    """Return how long each call took, and all together."""
    calls_s: list[float] = []
    threads = [threading.Thread(target=log_regularly, args=(log, options, calls_s)) for log in logs]
    start_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls_s, time.perf_counter() - start_s


def with_tahoe(place: Path, url: str, options: argparse.Namespace) -> None:
    (composed,) = compose([f"tracking.uri={url}"])
    runs, shippers = [], []
    for number in range(options.runs):
        run = RunDir(place / f"run-{number}")
        run.path.mkdir()
        run.write_config(to_dict(composed.config))
        run.write_json(run.identity_file, {"uid": str(number), "created_s": time.time()})
        run.begin_attempt()
        ship = [sys.executable, "-m", "orchestrator.tracking.shipping.shipper", str(run.path)]
        shippers.append(subprocess.Popen(ship, stdin=subprocess.PIPE))
        runs.append(run)
    until_s = time.monotonic() + 120
    while not all(run.mlflow_file.exists() for run in runs):  # MLflow is being imported
        assert time.monotonic() < until_s
        time.sleep(0.2)
    metric_logs = [MetricLog(run.metrics_file, attempt=1) for run in runs]
    behind_s: list[float] = []
    watching = threading.Event()
    watcher = threading.Thread(target=_watch, args=(runs, options, behind_s, watching))
    watcher.start()
    calls_s, _ = in_threads([log.log for log in metric_logs], options)
    watching.set()
    watcher.join()
    end_s = time.perf_counter()
    for log in metric_logs:
        log.__exit__()
    for shipper in shippers:
        shipper.communicate(timeout=300)
    drained_s = time.perf_counter() - end_s
    found = [count_missing_and_duplicate_points(run, url) for run in runs]
    print(
        f"Tahoe: a call {1e3 * statistics.median(calls_s):.2f} ms (median), "
        f"{1e3 * max(calls_s):.1f} ms (longest); the server is {statistics.median(behind_s):.1f} s "
        f"behind (median), {max(behind_s):.1f} s (most); all is there {drained_s:.1f} s after the "
        f"end; points lost {sum(lost for lost, _ in found)}, doubled {sum(two for _, two in found)}"
    )


def _watch(
    runs: list[RunDir], options: argparse.Namespace, behind_s: list[float], end: threading.Event
) -> None:
    """Note how many seconds of logging the furthest behind has not sent."""
    while not end.wait(1.0):
        worst = 0.0
        for run in runs:
            shipped = (run.read_json(run.mlflow_file) or {})["shipped_bytes"]
            with run.metrics_file.open("rb") as file:
                file.seek(shipped.get(run.metrics_file.name, 0))
                worst = max(worst, file.read().count(b"\n") * options.every_s)
        behind_s.append(worst)


def with_mlflow(url: str, options: argparse.Namespace) -> None:
    client = MlflowClient(tracking_uri=url)
    place = client.create_experiment("peer")
    ids = [client.create_run(place).info.run_id for _ in range(options.runs)]

    def log(run_id: str, step: int, figures: dict[str, float]) -> None:
        now_ms = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now_ms, step) for key, value in figures.items()]
        client.log_batch(run_id, metrics=metrics, synchronous=True)

    logs: list[Log] = [lambda step, figures, one=one: log(one, step, figures) for one in ids]
    calls_s, all_s = in_threads(logs, options)
    late_s = all_s - options.seconds + options.every_s
    print(
        f"MLflow's client: a call {1e3 * statistics.median(calls_s):.1f} ms (median), "
        f"{1e3 * max(calls_s):.0f} ms (longest); the end is {max(0, late_s):.1f} s late"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--every-s", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    rate = options.runs * options.metrics / options.every_s
    print(f"{platform.machine()}, {os.cpu_count()} cores; {rate:.0f} points a second")
    for way in (with_tahoe, lambda _, url, o: with_mlflow(url, o)):
        with tempfile.TemporaryDirectory() as directory, server(Path(directory)) as url:
            way(Path(directory), url, options)


if __name__ == "__main__":
    main()
