"""Processes beside the ranks: rank 0 has the shipper of metrics, each node a system monitor."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir
from orchestrator.training.forked_process import ForkedProcess
from orchestrator.training.stop_signal import StopSignal

MLFLOW = "orchestrator.tracking.mlflow_store.run"  # the module of Tahoe that imports it
_SHIPPER = "orchestrator.tracking.shipping.shipper"
_STOPPING_FLUSH_S = 10.0
log = logging.getLogger(__name__)


@contextmanager
def side_processes(
    run: RunDir, config: Config, stop_signal: StopSignal, *, may_fork: bool = False
) -> Iterator[None]:
    """Run this rank's side processes during the block.

    Args:
        may_fork: True in a process without threads, which saves a shipper the import of MLflow.
    """
    start_shipper = _fork_shipper if may_fork and MLFLOW in sys.modules else _spawn_shipper
    with _system_monitor(run, config), _shipper(run, config, stop_signal, start_shipper):
        yield


@contextmanager
def _shipper(
    run: RunDir,
    config: Config,
    stop_signal: StopSignal,
    start: Callable[..., "subprocess.Popen[bytes] | ForkedProcess"],
) -> Iterator[None]:
    """Send metrics to MLflow from another process; give it some time to catch up at the end.

    Ranks on several nodes send to a server only: SQLite on a shared file system is unsafe.

    After a stop request it gets 10 s: Slurm and torchrun kill the ranks half a minute later, and an
    attempt that has saved would look lost. The next attempt sends the rest.
    """
    is_reachable = not _is_on_cluster(config) or config.tracking.uri.startswith("http")
    if os.environ["RANK"] != "0" or not (config.tracking.enabled and is_reachable):
        yield
        return
    timeout_s = config.tracking.flush_timeout_s
    shipper = start(str(run.path), "--flush-timeout-s", str(timeout_s))
    try:
        yield
    finally:
        assert shipper.stdin is not None
        shipper.stdin.close()  # end of file: this rank is done
        if shipper.poll() is None:
            log.info("sending the remaining metrics to MLflow, for up to %g s", timeout_s)
        try:
            shipper.wait(_STOPPING_FLUSH_S if stop_signal else timeout_s + 30)
        except subprocess.TimeoutExpired:
            shipper.kill()
            log.warning(
                "some metrics have not reached MLflow; `tahoe sync %s` sends them", run.shell_path
            )


def _fork_shipper(*arguments: str) -> ForkedProcess:
    shipper = import_module(_SHIPPER)
    return ForkedProcess(lambda: int(shipper.main(arguments)))


def _spawn_shipper(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", _SHIPPER, *arguments], stdin=subprocess.PIPE)


def _is_on_cluster(config: Config) -> bool:
    """Check whether ranks run on other machines than the one that the run was created on."""
    has_other_nodes = os.environ["WORLD_SIZE"] != os.environ["LOCAL_WORLD_SIZE"]
    return config.launcher.name != "local" or has_other_nodes


@contextmanager
def _system_monitor(run: RunDir, config: Config) -> Iterator[None]:
    """Record the system metrics of this node from another process, started by its first rank."""
    is_enabled = config.tracking.enabled and config.tracking.system_metrics_interval_s is not None
    if not is_enabled or os.environ["LOCAL_RANK"] != "0":
        yield
        return
    command = [sys.executable, "-m", "orchestrator.tracking.shipping.system_metrics", str(run.path)]
    monitor = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        monitor.kill()
        monitor.wait()
