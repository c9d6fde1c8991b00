"""What a node does while a run goes on: its processors, memory, disk, network and GPUs.

    python -m orchestrator.tracking.shipping.system_metrics RUN

A process on each node, beside its first rank and with less of the processor's favour. MLflow's own
monitors read; what they say goes to a file of the run directory, from where the shipper takes it.
Its points are named as MLflow's page of system metrics wants them, `system/NODE/...`, and their
step is the time in seconds since the run was created, which no rollback turns back. It ends with
the rank that started it, told by the end-of-file on its stdin.

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

from orchestrator.redact import mlflow_safe_name
from orchestrator.run.rundir import RunDir, append_json_line
from orchestrator.tracking.shipping.parent_watch import ParentWatch

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

_NICENESS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Watch this node until the end of stdin."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.tracking.shipping.system_metrics")
    parser.add_argument("run", type=Path, help="the run directory")
    run = RunDir(parser.parse_args(argv).run.absolute())
    lifeline = ParentWatch(flush_timeout_s=0)
    lifeline.ignore_rank_signals()
    os.nice(_NICENESS)
    config = run.read_config()["tracking"]
    watch(run, lifeline, config["system_metrics_interval_s"], node_name())
    return 0


def node_name() -> str:
    """Return what Slurm calls this machine, or what it calls itself."""
    from socket import gethostname

    return mlflow_safe_name(os.environ.get("SLURMD_NODENAME") or gethostname()).replace("/", "_")


def watch(run: RunDir, lifeline: ParentWatch, every_s: float, node: str) -> None:
    """Note how this node is doing, again and again until the lifeline ends."""
    lifeline.wait(every_s)  # what ends sooner is not worth importing MLflow, which takes seconds
    monitors = [] if lifeline.ended else _monitors()
    created_s = float((run.read_json(run.identity_file) or {}).get("created_s") or time.time())
    file = run.system_file(node)
    file.parent.mkdir(exist_ok=True)
    while True:
        lifeline.wait(every_s)
        if lifeline.ended or lifeline.remaining_s == 0:
            return
        now_s = time.time()
        said = {f"system/{node}/{key}": value for key, value in _read(monitors).items()}
        line = {"step": int(now_s - created_s), "time_ms": int(1000 * now_s), "metrics": said}
        try:
            append_json_line(file, line)
        except OSError as error:  # a full disk: these figures are worth no failure
            print(f"this node is not watched for now: {error}", file=sys.stderr)


def _monitors() -> "list[BaseMetricsMonitor]":
    # MLflow is set up before it is imported.
    from orchestrator.tracking.mlflow_store import client  # noqa: F401

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
    figures: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        figures |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return figures


if __name__ == "__main__":
    sys.exit(main())
