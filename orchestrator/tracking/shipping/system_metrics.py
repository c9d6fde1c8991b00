"""Monitor a node during a run: its processors, memory, disk, network and GPUs.

    python -m orchestrator.tracking.shipping.system_metrics RUN

A process on each node, beside its first rank and with a lower priority. It writes the values of
MLflow's own monitors to a file of the run directory, which the shipper sends on. The points have
the names that MLflow's page of system metrics requires, `system/NODE/...`, and their step is the
time in seconds since the run was created, which no rollback turns back. It ends with the rank that
started it: at the end-of-file on its stdin.

https://mlflow.org/docs/latest/ml/tracking/system-metrics/
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.run.node_times import node_name
from orchestrator.run.rundir import RunDir, append_json_line
from orchestrator.tracking.shipping.parent_watch import ParentWatch

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

_NICENESS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Monitor this node until the end of stdin."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking.shipping.system_metrics")
    parser.add_argument("run", type=Path, help="the run directory")
    run = RunDir(parser.parse_args(argv).run.absolute())
    parent = ParentWatch(flush_timeout_s=0)
    parent.ignore_rank_signals()
    os.nice(_NICENESS)
    config = run.read_config()["tracking"]
    monitor(run, parent, config["system_metrics_interval_s"], node_name())
    return 0


def monitor(run: RunDir, parent: ParentWatch, interval_s: float, node: str) -> None:
    """Write the metrics of this node at intervals until the parent ends."""
    parent.wait(interval_s)  # importing MLflow takes seconds: not for a shorter run
    monitors = [] if parent.ended else _monitors()
    created_s = float((run.read_json(run.identity_file) or {}).get("created_s") or time.time())
    file = run.system_file(node)
    file.parent.mkdir(exist_ok=True)
    while True:
        parent.wait(interval_s)
        if parent.ended or parent.remaining_s == 0:
            return
        now_s = time.time()
        metrics = {f"system/{node}/{key}": value for key, value in _read(monitors).items()}
        line = {"step": int(now_s - created_s), "time_ms": int(1000 * now_s), "metrics": metrics}
        try:
            append_json_line(file, line)
        except OSError as error:  # a full disk: no reason to fail
            print(f"the metrics of this node are not written for now: {error}", file=sys.stderr)


def _monitors() -> "list[BaseMetricsMonitor]":

    # isort: split
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(RuntimeError):  # there is no GPU
        monitors.append(GPUMonitor())
    return monitors


def _read(monitors: "Sequence[BaseMetricsMonitor]") -> dict[str, float]:
    metrics: dict[str, float] = {}
    for source in monitors:
        source.collect_metrics()
        metrics |= source.aggregate_metrics()
        source.clear_metrics()
    return metrics


if __name__ == "__main__":
    sys.exit(main())
