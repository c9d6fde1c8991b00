"""Processes beside the ranks: what a run on several hosts must not start."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir
from orchestrator.training.side_processes import MLFLOW, side_processes
from orchestrator.training.stop_signal import StopSignal


@pytest.fixture
def stop_signal(tmp_path: Path) -> Iterator[StopSignal]:
    before = {number: signal.getsignal(number) for number in StopSignal.SIGNALS}
    yield StopSignal(RunDir(tmp_path), polls_file=False)
    for number, handler in before.items():
        signal.signal(number, handler)


def children() -> set[str]:
    pid = os.getpid()
    return {*Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def command_line(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize(("world_size", "starts"), [("1", True), ("2", False)])
def test_no_host_of_several_opens_sqlite(
    config: Config,
    stop_signal: StopSignal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    world_size: str,
    *,
    starts: bool,
) -> None:
    """The file system of a run on several hosts is shared, and SQLite is unsafe there."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": world_size}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    sqlite = {"tracking.enabled": True, "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db"}
    no_monitor = {"tracking.system_metrics_interval_s": None}
    monkeypatch.setitem(sys.modules, MLFLOW, sys)  # as in a process that uses MLflow, with threads
    before = children()
    # It is no run, so a shipper ends at once.
    with side_processes(RunDir(tmp_path), config.replace(sqlite | no_monitor), stop_signal):
        new = children() - before
        assert bool(new) == starts
        for child in new:  # another program, and not a copy of this process
            assert command_line(child) != command_line("self")
