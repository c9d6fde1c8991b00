"""A metric that was logged has been written, whatever happens next."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.run.rundir import read_json_lines
from orchestrator.training.monitoring.metric_log import MetricLog

LOG_AND_DIE = """
import os, pathlib, signal, sys
from orchestrator.training.monitoring.metric_log import MetricLog
log = MetricLog(pathlib.Path(sys.argv[1]), attempt=1)
for step in range(1000):
    log.log(step, {"train/loss": step / 7})
os.kill(os.getpid(), signal.SIGKILL)
"""


# The kernel lets no file grow beyond the limit, in the middle of a line, as a full disk does.
LOG_WITHOUT_ROOM = """
import logging, pathlib, resource, sys
from orchestrator.training.monitoring.metric_log import MetricLog
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
limit = lambda soft: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
with MetricLog(pathlib.Path(sys.argv[1]), attempt=1) as log:
    for step in range(100):
        if step == 10:
            limit(1250)
        if step == 60:
            limit(resource.RLIM_INFINITY)
        log.log(step, {"train/loss": step / 7})
    log.sync()
    if sys.argv[2] == "full at the end":
        limit(pathlib.Path(sys.argv[1]).stat().st_size + 20)
        log.log(100, {"train/loss": 0.0})
"""


@pytest.mark.parametrize("end", ["room at the end", "full at the end"])
def test_a_full_disk_stops_nothing_and_loses_nothing(tmp_path: Path, end: str) -> None:
    file = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", LOG_WITHOUT_ROOM, str(file), end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]  # none is torn
    assert [(r["step"], r["metrics"]["train/loss"]) for r in lines] == [
        (step, step / 7) for step in range(100)
    ]
    first, recovered, *rest = done.stdout.splitlines()
    assert (
        "metrics cannot be written: [Errno 28] No space left on device. Training goes on" in first
    )
    assert recovered == "the pending metrics have been written"
    assert [line for line in rest if "metrics lost" in line] == (
        ["1 record of metrics lost: the disk is full"] if end.startswith("full") else []
    )


def test_a_killed_process_leaves_every_record(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    done = subprocess.run([sys.executable, "-c", LOG_AND_DIE, str(file)], timeout=60, check=False)
    assert done.returncode < 0
    records = list(read_json_lines(file))
    assert [(r["step"], r["metrics"]["train/loss"]) for r in records] == [
        (step, step / 7) for step in range(1000)
    ]


def test_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with MetricLog(file, attempt=1) as log:
        log.log(1, {"a": 1.0})
        log.log(2, {"a": 2.0})
    whole = file.read_bytes()
    last_start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last_start, len(whole) + 1):
        file.write_bytes(whole[:cut])
        with MetricLog(file, attempt=2) as log:
            log.log(3, {"a": math.nan})
        steps = [record["step"] for record in read_json_lines(file)]
        assert steps in ([1, 3], [1, 2, 3])
        assert steps == [1, 2, 3] or cut < len(whole) - 1


def test_ranks_without_a_file_write_nothing(tmp_path: Path) -> None:
    with MetricLog(None, attempt=1) as log:
        log.log(1, {"a": 1.0})
        log.sync()
    assert list(tmp_path.iterdir()) == []
