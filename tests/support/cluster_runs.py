"""Runs that are submitted to a local cluster, waited for by what they leave, and compared."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cli_runner import Tahoe
from run_results import figures, global_batches, weights

from orchestrator.jobs.submit import active_job
from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir, read_json_lines
from slurm.client import QueuedJob
from slurm.local_cluster import LocalCluster

DEADLINE_S = 200
NUM_STEPS = 40

NETWORK = """
import time
from torch import nn

class Slow(nn.Module):  # so that a run does not end before it is hurt
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, images):
        time.sleep(self.seconds)
        return images

def build(num_classes, in_channels, seconds=0.45):
    return nn.Sequential(
        Slow(seconds), nn.Flatten(),
        nn.Linear(in_channels * 32 * 32, 64), nn.BatchNorm1d(64), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(64, num_classes))
"""


@dataclass(frozen=True)
class Jobs:
    """What tests do with jobs."""

    tahoe: Tahoe
    digits: Path
    cluster: LocalCluster

    def overrides(self, name: str) -> list[str]:
        return [
            *(f"run_dir={name}", f"data.url='{self.digits}'", "model=network:build"),
            *(f"recipe.steps={NUM_STEPS}", "recipe.global_batch_size=64", "tracking=none"),
            "recipe.num_micro_batches=4",
            *("checkpoint.every_steps=10", "evaluate.every_epochs=1", "logging.every_steps=1"),
            *("logging.log_sample_ids=true", "data.num_workers=0", "runtime.threads_per_rank=1"),
        ]

    def submit(self, name: str, *more: str, nodes: int = 2) -> RunDir:
        """Submit a run of two ranks a node."""
        size = (f"slurm.nodes={nodes}", "slurm.tasks_per_node=2", "slurm=default")
        self.tahoe("submit", *self.overrides(name), *size, *more)
        return RunDir(self.tahoe.cwd / name)

    def wait_for_step(self, run: RunDir, step: int) -> None:
        """Return when a step has been logged."""
        self.wait(run, lambda: _last_step(run) >= step, f"step {step}")

    def wait_for_end(self, run: RunDir) -> None:
        """Return when Slurm has no job of the run any more."""
        self.wait(run, lambda: self.job(run) is None, "the end of its job")

    def job(self, run: RunDir) -> QueuedJob | None:
        return active_job(run)

    def wait(self, run: RunDir, is_true: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not is_true():
            assert time.monotonic() < deadline_s, f"no {what}:\n{everything_said(run)}"
            time.sleep(0.2)


def everything_said(run: RunDir) -> str:
    """Return the output of a run's jobs and the ends of its logs, for messages of tests."""
    files = [*run.path.glob("slurm/*.out"), *sorted(run.path.glob("logs/*/rank-*.log"))]
    return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-1500:]}" for file in files)


def assert_as_if_nothing_had_happened(run: RunDir, undisturbed: RunDir) -> None:
    assert run.is_finished, everything_said(run)
    assert weights(run, NUM_STEPS) == weights(undisturbed, NUM_STEPS)
    assert figures(run, "train/loss") == figures(undisturbed, "train/loss")
    assert global_batches(run) == global_batches(undisturbed)


def ends(run: RunDir) -> list[str]:
    """Return why each attempt ended."""
    lines = [line for line in read_json_lines(run.attempts_file) if "ended_s" in line]
    return [line["why"] for line in sorted(lines, key=lambda line: line["attempt"])]


def jobs_of(run: RunDir) -> set[tuple[str, int]]:
    """Return the jobs of a run's attempts, each with the number of its restarts by Slurm."""
    attempts = read_attempts(run).values()
    return {(line["slurm_job_id"], line["slurm_restart_count"]) for line in attempts}


def first_step_s(run: RunDir, attempt: int) -> tuple[float, float]:
    """Return the time of the first step that an attempt has logged, and how long it took to it."""
    times_ms = (
        record["time_ms"]
        for record in read_json_lines(run.metrics_file)
        if record["attempt"] == attempt and "train/loss" in record["metrics"]
    )
    log = (run.log_dir(attempt) / "rank-00000.log").read_text()
    took = re.search(r"first step after ([\d.]+) s", log)
    assert took is not None
    return min(times_ms) / 1000, float(took[1])


def _last_step(run: RunDir) -> int:
    return max((record["step"] for record in read_json_lines(run.metrics_file)), default=0)


def rank_pids(run: RunDir, *, node: str | None = None) -> list[int]:
    """Return the process ids of the ranks, of all nodes or of one: processes of this machine."""
    found = subprocess.run(
        ["pgrep", "-f", f"orchestrator.training.worker {run.path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    pids = [int(pid) for pid in found.stdout.split()]
    return [pid for pid in pids if node is None or f"SLURMD_NODENAME={node}" in environ(pid)]


def environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")
