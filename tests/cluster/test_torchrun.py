"""Torchrun on two hosts, each with a network and a name of its own: one run, whoever starts it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_runs import NUM_STEPS, Jobs
from run_results import figures, global_batches, weights

from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir, read_json_lines

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

WORKER = "orchestrator.training.worker"
TORCHRUN = (
    *("srun", "--nodes=2", "--nodelist=node1,node2", "--ntasks-per-node=1", "--exclusive"),
    "--kill-on-bad-exit=1",  # an agent that has lost the other would wait for it for ten minutes
    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=node1:29400", "--rdzv-id=test"),
)


@contextmanager
def torchrun(jobs: Jobs, run: RunDir, max_restarts: int) -> Iterator["subprocess.Popen[str]"]:
    """Start torchrun on two nodes; srun does no more than that."""
    environ = os.environ | {"PYTHONPATH": f"{jobs.tahoe.cwd}:{os.environ.get('PYTHONPATH', '')}"}
    command = [*TORCHRUN, f"--max-restarts={max_restarts}", "-m", WORKER, str(run.path)]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # it ends all that it has started


def kill_rank(run: RunDir, rank: int) -> None:
    """Kill a rank, found by its command and its environment, on whichever node it is."""
    pids = [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if f"\0{WORKER}\0{run.path}\0" in _read(process / "cmdline")
        and f"\0RANK={rank}\0" in f"\0{_read(process / 'environ')}"
    ]
    (pid,) = pids
    os.kill(pid, signal.SIGKILL)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # the process has ended
        return ""


def test_ranks_killed_under_torchrun_on_two_hosts_cost_no_bit(jobs: Jobs) -> None:
    network = "+model.kwargs.seconds=0.03"
    jobs.tahoe("train", *jobs.overrides("alone"), network, "launcher.nproc_per_node=2")
    undisturbed = RunDir(jobs.tahoe.cwd / "alone")
    jobs.tahoe("create", *jobs.overrides("torchrun"), network, "launcher.nproc_per_node=2")
    run = RunDir(jobs.tahoe.cwd / "torchrun")

    with torchrun(jobs, run, max_restarts=0) as first:
        jobs.wait_for_step(run, 12)
        kill_rank(run, 0)
        output, _ = first.communicate(timeout=100)
        assert first.returncode != 0, output
    with torchrun(jobs, run, max_restarts=1) as second:
        jobs.wait_for_step(run, 25)
        kill_rank(run, 1)  # on the other node: torchrun restarts both
        output, _ = second.communicate(timeout=100)
        assert second.returncode == 0, output

    assert run.is_finished
    assert weights(run, NUM_STEPS) == weights(undisturbed, NUM_STEPS)
    assert figures(run, "train/loss") == figures(undisturbed, "train/loss")
    assert global_batches(run) == global_batches(undisturbed)
    attempts = [*read_attempts(run).values()]
    assert [(a["launcher"], a["world_size"]) for a in attempts] == [("torchrun", 2)] * 3
    assert all({*attempt["nodes"].split(",")} == {"node1", "node2"} for attempt in attempts)
    assert attempts[0]["lost"]  # rank 0 could not record its own end
    assert [attempt["exit_code"] for attempt in attempts[1:]] == [1, 0]
    logs = [(run.log_dir(attempt) / "rank-00001.log").read_text() for attempt in (1, 2, 3)]
    assert all("step" in log for log in logs)
    steps = [line["step"] for line in read_json_lines(run.metrics_file)]
    assert max(steps) == NUM_STEPS
