"""A job of more ranks than the recipe has micro-batches trains as one rank does."""

import os
import shutil
import subprocess
import sys

import pytest
import smooth_network
from cluster_runs import Jobs, everything_said
from run_results import figures, global_batches

from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

NUM_STEPS = 20
RECIPE = (
    "model=smooth_network:build",
    f"recipe.steps={NUM_STEPS}",
    *("recipe.num_micro_batches=2", "data.num_lanes=8", "recipe.optimizer.lr=0.02"),
)

TORCHRUN = (
    *("srun", "--nodes=2", "--nodelist=node1,node2", "--ntasks-per-node=1", "--exclusive"),
    *("--kill-on-bad-exit=1", sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
    *("--nproc-per-node=4", "--rdzv-backend=c10d", "--rdzv-endpoint=node1:29400", "--rdzv-id=four"),
)


@pytest.fixture(scope="module")
def one_rank(jobs: Jobs) -> RunDir:
    shutil.copy(smooth_network.__file__, jobs.tahoe.cwd)
    jobs.tahoe("train", *jobs.overrides("one rank"), *RECIPE, "launcher.nproc_per_node=1")
    return RunDir(jobs.tahoe.cwd / "one rank")


@pytest.mark.parametrize("tasks_per_node", [1, 2])
def test_ranks_of_a_job_on_two_nodes_train_as_one(
    jobs: Jobs, one_rank: RunDir, tasks_per_node: int
) -> None:
    run = jobs.submit(f"two by {tasks_per_node}", *RECIPE, f"slurm.tasks_per_node={tasks_per_node}")
    jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    assert_equal_training(run, one_rank)


def test_eight_ranks_on_two_nodes_train_as_one(jobs: Jobs, one_rank: RunDir) -> None:
    """Started by torchrun, since Slurm places no more tasks on a node than it has CPUs."""
    size = "launcher.nproc_per_node=8"
    jobs.tahoe("create", *jobs.overrides("two by 4"), *RECIPE, size)
    run = RunDir(jobs.tahoe.cwd / "two by 4")
    environ = os.environ | {"PYTHONPATH": f"{jobs.tahoe.cwd}:{os.environ.get('PYTHONPATH', '')}"}
    worker = ("-m", "orchestrator.training.worker", str(run.path))
    done = subprocess.run(
        [*TORCHRUN, *worker], env=environ, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [attempt["world_size"] for attempt in read_attempts(run).values()] == [8]
    assert_equal_training(run, one_rank)


def assert_equal_training(run: RunDir, expected: RunDir) -> None:
    """Check equal batches, and losses that are equal but for rounding."""
    assert global_batches(run) == global_batches(expected)
    ours, theirs = (figures(r, "train/loss", "val/loss", "val/top1") for r in (run, expected))
    assert len([key for key in theirs if "train/loss" in key]) == NUM_STEPS
    assert ours.keys() == theirs.keys()
    for key, (value,) in theirs.items():
        assert [*ours[key]] == pytest.approx([value], rel=1e-5), key
