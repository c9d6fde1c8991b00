"""Restarts in one job of a real Slurm: a crash or a lost node gives no node back to the queue.

The ranks' own start-up, mostly the import of torch, is left out of the times that are asserted: it
depends on what else this machine does.
"""

import os
import signal
import time

import pytest
from cluster_runs import (
    Jobs,
    assert_as_if_nothing_had_happened,
    ends,
    everything_said,
    first_step_s,
    jobs_of,
    rank_pids,
)

from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir
from slurm import client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]


def overhead_s(run: RunDir, attempt: int, since_s: float) -> float:
    """Return the time until the first step of an attempt, without its start-up; print both."""
    stepped_s, startup_s = first_step_s(run, attempt)
    print(f"next step after {stepped_s - since_s:.1f} s, of which {startup_s:.1f} are its start-up")
    return stepped_s - since_s - startup_s


def test_a_killed_rank_starts_again_in_the_same_job(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("restarted")
    jobs.wait_for_step(run, 12)
    killed_s = time.time()
    os.kill(rank_pids(run)[-1], signal.SIGKILL)
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    first, second = read_attempts(run).values()
    assert (first["crashed"], first["next"], second["next"]) == (True, "restart", 0)
    assert len(jobs_of(run)) == 1
    assert overhead_s(run, 2, killed_s) < 15


@pytest.mark.slow
def test_ten_killed_ranks_are_one_job(jobs: Jobs, undisturbed: RunDir) -> None:
    quick = ("checkpoint.every_steps=1", "+model.kwargs.seconds=0.2")
    run = jobs.submit("ten kills", *quick)
    for kill in range(1, 11):
        jobs.wait(run, lambda n=kill: run.num_attempts == n, f"attempt {kill}")
        jobs.wait_for_step(run, 3 * kill)
        os.kill(rank_pids(run, node=f"node{kill % 2 + 1}")[0], signal.SIGKILL)
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert run.num_attempts == 11
    assert len(jobs_of(run)) == 1
    assert [line["next"] for line in read_attempts(run).values()] == [*["restart"] * 10, 0]


@pytest.mark.slow
def test_a_lost_node_is_replaced_by_a_spare_one(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("spare", "slurm.spare_nodes=1")
    jobs.wait_for_step(run, 12)
    lost_s = time.time()
    jobs.tahoe("local-cluster", "kill-node", "node2")
    try:
        jobs.wait_for_end(run)
    finally:
        jobs.tahoe("local-cluster", "revive-node", "node2")
    assert_as_if_nothing_had_happened(run, undisturbed)
    first, second = read_attempts(run).values()
    assert (first["nodes"], second["nodes"]) == ("node[1-2]", "node[1,3]")
    assert (first["failed_node"], first["crashed"], first["next"]) == ("node2", False, "restart")
    assert len(jobs_of(run)) == 1
    assert overhead_s(run, 2, lost_s) < 45


@pytest.mark.slow
def test_the_loss_of_the_script_s_node_requeues_a_job_with_spares(jobs: Jobs) -> None:
    """Slurm would let it run on, without anything that runs in it."""
    run = jobs.submit("spare-first", "slurm.spare_nodes=1", "recipe.steps=20", nodes=1)
    jobs.wait_for_step(run, 3)
    jobs.tahoe("local-cluster", "kill-node", "node1")
    try:
        jobs.wait(run, lambda: run.num_attempts == 2, "second attempt")
    finally:
        jobs.tahoe("local-cluster", "revive-node", "node1")
    jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    first, second = read_attempts(run).values()
    assert (first["nodes"], first["failed_node"], first["lost"]) == ("node1", "node1", True)
    assert (second["nodes"], second["slurm_restart_count"]) == ("node2", 1)


def num_given(run: RunDir) -> int:
    (attempt,) = read_attempts(run).values()
    return len(client.job_nodes(attempt["slurm_job_id"]))


@pytest.mark.slow
def test_a_range_of_nodes_takes_the_most_that_fit(jobs: Jobs) -> None:
    """Three nodes come, whose six ranks do not divide four micro-batches."""
    run = jobs.submit("range", "slurm.nodes=1-3", "recipe.steps=20")
    jobs.wait_for_step(run, 3)
    assert num_given(run) == 3
    jobs.tahoe("cancel", str(run.path))
    jobs.wait_for_end(run)
    jobs.tahoe("resume", str(run.path), "slurm.nodes=1-3", "slurm.tasks_per_node=1")
    jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    attempts = read_attempts(run).values()
    assert [(a["nodes"], a["world_size"]) for a in attempts] == [("node[1-2]", 4), ("node[1-2]", 2)]
    assert len(ends(run)) == 2
