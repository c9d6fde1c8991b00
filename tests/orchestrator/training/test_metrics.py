"""A metric that was logged has been written, whatever happens next."""

import math
import subprocess
import sys
from pathlib import Path

from orchestrator.rundir import read_json_lines
from orchestrator.training.metrics import MetricLog

LOG_AND_DIE = """
import os, pathlib, signal, sys
from orchestrator.training.metrics import MetricLog
log = MetricLog(pathlib.Path(sys.argv[1]), attempt=1)
for step in range(1000):
    log.log(step, {"train/loss": step / 7})
os.kill(os.getpid(), signal.SIGKILL)
"""


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
