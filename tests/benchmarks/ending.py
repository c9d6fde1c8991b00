"""The end of a command, and a sweep of short runs.

    python tests/benchmarks/ending.py [--rounds 5] [--sweeps 1]

LeNet-5 is trained on digits by one rank: without tracking, with MLflow's SQLite store and with its
server. What is measured is the time from the last save, or the last value that MLflow has got, to
the end of the command; the processes that draw plots end before the next turn begins. A sweep has
20 points of about two seconds, with the SQLite store. Its training is the sum of the points', each
from the beginning of its first step to the end of its last evaluation and save.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir
from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_ui import serve
from tests.benchmarks.rounds import (
    Spread,
    differences,
    print_bar,
    print_machine,
    ratios,
    take_turns,
    wait_until_quiet,
)

TAHOE = (sys.executable, "-m", "orchestrator.cli.main")
NUM_POINTS, POINT_STEPS, RUN_STEPS = 20, 90, 22
SHIPPED = re.compile(r"(\S+ \S+) INFO attempt 1: all is shipped")
FIRST_STEP = re.compile(r"(\S+ \S+) INFO +first step after .*first step ([\d.]+)")


def end_of_run(place: Path, number: list[int], tracking: str) -> float:
    """Train; return the seconds from the last save or value sent to the end of the command."""
    number[0] += 1
    run = RunDir(place / f"run-{number[0]}")
    command = [*TAHOE, "train", "model=lenet5_1998", "data=digits", f"data.url={place}/digits"]
    command += [f"run_dir={run.path}", f"recipe.steps={RUN_STEPS}", tracking]
    subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, timeout=120, check=True)
    end_s = time.time()
    last_s = max(file.stat().st_mtime for file in run.checkpoints_dir.glob("*/manifest.json"))
    log = run.path / "logs" / "shipper.log"
    if log.exists():
        last_s = max(last_s, *map(_time, SHIPPED.findall(log.read_text())))
    return end_s - last_s


def sweep(place: Path, number: int) -> tuple[float, float]:
    """Run a sweep; return its seconds, and those of its training."""
    wait_until_quiet()
    runs_dir = place / f"sweep-{number}"
    command = [*TAHOE, "train", "-m", "model=lenet5_1998", "data=digits"]
    command += [f"data.url={place}/digits", f"runs_dir={runs_dir}", f"recipe.steps={POINT_STEPS}"]
    command += [f"seed=range({NUM_POINTS})"]
    start_s = time.time()
    subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, timeout=220, check=True)
    seconds = time.time() - start_s
    (directory,) = (runs_dir / "sweeps").iterdir()
    return seconds, sum(map(training_s, SweepDir(directory).runs()))


def training_s(run: RunDir) -> float:
    log = run.log_dir(1) / "rank-00000.log"
    (first_step,) = FIRST_STEP.findall(log.read_text())
    begin_s = _time(first_step[0]) - float(first_step[1])
    return float(read_attempts(run)[1]["trained_until_s"]) - begin_s


def _time(text: str) -> float:
    return datetime.fromisoformat(text.replace(",", ".")).timestamp()


@contextmanager
def server(place: Path) -> Iterator[str]:
    """Serve a store of its own, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, url = (
        serve.command(f"sqlite:///{place}/served.db", port=port),
        f"http://127.0.0.1:{port}",
    )
    with subprocess.Popen(
        command,
        cwd=place,
        env=serve.environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not _is_up(f"{url}/health"):
                assert time.monotonic() < deadline_s
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(process.pid, 15)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sweeps", type=int, default=1)
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        make = [*TAHOE, "shard", "digits", str(place / "digits")]
        subprocess.run(make, stdout=subprocess.DEVNULL, check=True)
        with server(place) as url:
            trackings = {
                "none": "tracking=none",
                "sqlite": f"tracking.uri=sqlite:///{place}/mlflow.db",
                "server": f"tracking.uri={url}",
            }
            run = partial(end_of_run, place, [0])
            ends = take_turns(
                {name: partial(run, tracking) for name, tracking in trackings.items()},
                arguments.rounds,
            )
        sweeps = [sweep(place, number) for number in range(arguments.sweeps)]
        wait_until_quiet()  # the last plots are drawn
    for name, seconds in ends.items() if arguments.rounds else ():
        print_bar(f"end of a command, tracking: {name}", Spread.of(seconds), "s", at_most=0.5)
    if sweeps:
        whole, trained = zip(*sweeps, strict=True)
        print(f"{NUM_POINTS} points train for {Spread.of(trained)} s in {Spread.of(whole)} s")
        print(f"beside its training, it takes {differences(whole, trained)} s")
        print_bar("a sweep's time : its training", ratios(whole, trained), "x", at_most=1.3)


if __name__ == "__main__":
    main()
