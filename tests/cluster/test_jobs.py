"""Runs as jobs of a real Slurm: whatever happens to them, they end as if nothing had."""

import os
import signal
import subprocess

import pytest
from cluster_runs import (
    NUM_STEPS,
    Jobs,
    assert_as_if_nothing_had_happened,
    ends,
    everything_said,
    jobs_of,
    rank_pids,
)
from run_results import global_batches

from orchestrator.run.outcome import read_attempts
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.tracking.mlflow_store.client import open_client
from slurm import client

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    # MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


def test_a_job_on_two_nodes_is_the_local_run(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("finish")
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    (attempt, end) = read_json_lines(run.attempts_file)
    assert (attempt["world_size"], attempt["nodes"]) == (4, "node[1-2]")
    assert end["exit_code"] == 0


@pytest.mark.parametrize("is_script", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ranks_know_their_names_where_jobs_get_no_environment(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, *, is_script: bool
) -> None:
    export = ["+slurm.additional_parameters.export=NONE"] if is_script else []
    if not is_script:
        monkeypatch.setenv("SBATCH_EXPORT", "NONE")  # as some sites have it
    run = jobs.submit(f"export {is_script}", "recipe.steps=4", *export)
    jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    assert run.num_attempts == 1


@pytest.mark.slow
def test_a_time_limit_only_makes_more_attempts(jobs: Jobs, undisturbed: RunDir) -> None:
    # Slurm looks at limits every 30 s, so it warns after 25 to 55 s; the work takes 60.
    limit = ("slurm.timeout_min=1", "slurm.signal_delay_s=5")
    run = jobs.submit("limit", *limit, "+model.kwargs.seconds=1.5")
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert len(ends(run)) >= 2


@pytest.mark.slow
def test_a_limit_that_comes_in_the_middle_of_a_long_step_costs_a_new_job(jobs: Jobs) -> None:
    """Slurm requeues no job that it ends for its limit, and kills all of it if that takes long."""
    limit = ("slurm.timeout_min=1", "slurm.signal_delay_s=1")
    run = jobs.submit("unheard", *limit, "+model.kwargs.seconds=120", nodes=1)
    jobs.wait(run, lambda: run.num_attempts == 2, "second attempt")
    jobs.tahoe("cancel", "--now", str(run.path))
    jobs.wait_for_end(run)
    first, second = read_json_lines(run.jobs_file)
    assert first["slurm_job_id"] != second["slurm_job_id"]
    assert ends(run)[0] == "a node was lost, or Slurm killed it"


def test_a_preempted_job_goes_on(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("preempted")
    jobs.wait_for_step(run, 14)
    jobs.tahoe("local-cluster", "preempt", str(run.path))
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert len(ends(run)) == 2


@pytest.mark.parametrize("is_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_job_goes_on_without_a_lost_node(
    jobs: Jobs, undisturbed: RunDir, *, is_first: bool
) -> None:
    run = jobs.submit(
        f"lost-{is_first}", "tracking.enabled=true", "tracking.system_metrics_interval_s=1"
    )
    jobs.wait_for_step(run, 14)
    (line,) = read_json_lines(run.attempts_file)
    node = client.node_names(line["nodes"])[0 if is_first else 1]
    jobs.tahoe("local-cluster", "kill-node", node)
    try:
        jobs.wait_for_end(run)
    finally:
        jobs.tahoe("local-cluster", "revive-node", node)
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert len(ends(run)) == 2
    (lost,) = [line for line in read_json_lines(run.attempts_file) if line.get("lost")]
    assert lost["failed_node"] == node
    second = client.node_names(read_attempts(run)[2]["nodes"])
    assert {file.stem for file in run.system_dir.glob("*.jsonl")} >= {*second}
    jobs.tahoe("sync", str(run.path))
    assert shown_steps(jobs, run) == list(range(1, NUM_STEPS + 1))  # no zig-zag


@pytest.mark.slow
def test_a_node_that_two_attempts_died_of_is_left_out(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("twice", "checkpoint.every_steps=1")
    for attempt in (1, 2):
        jobs.wait(run, lambda n=attempt: run.num_attempts == n, f"attempt {attempt}")
        jobs.wait_for_step(run, 6 * attempt)
        os.kill(rank_pids(run, node="node2")[0], signal.SIGKILL)
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    lines = list(read_json_lines(run.attempts_file))
    assert [line["failed_node"] for line in lines if line.get("crashed")] == ["node2", "node2"]
    assert [line["next"] for line in lines if "next" in line] == ["restart", "requeue", 0]
    assert [line["nodes"] for line in lines if "nodes" in line] == [
        *("node[1-2]", "node[1-2]", "node[1,3]")
    ]
    assert "excluded from now on: node2" in everything_said(run)


@pytest.mark.slow
def test_a_hanging_rank_is_found_and_costs_an_attempt(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("hanging", "runtime.hang_timeout_s=6")
    jobs.wait_for_step(run, 14)
    os.kill(rank_pids(run)[-1], signal.SIGSTOP)
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)
    assert len(ends(run)) == 2
    assert len(jobs_of(run)) == 1
    first = run.log_dir(1).glob("rank-*.log")
    assert any("Timeout (0:00:07)!" in log.read_text() for log in first)


@pytest.mark.slow
def test_cancel_saves_and_resume_goes_on_with_other_nodes(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("cancelled")
    jobs.wait_for_step(run, 14)
    again = jobs.tahoe("resume", str(run.path), "slurm.nodes=1", check=False)
    assert "is running already" in again.stderr
    assert run.read_config()["slurm"]["nodes"] == 2
    assert "saves and ends" in jobs.tahoe("cancel", str(run.path)).stdout
    jobs.wait_for_end(run)
    assert not run.is_finished
    assert "stop requested" in ends(run)[0]
    jobs.tahoe("resume", str(run.path), "slurm.nodes=1")
    jobs.wait_for_end(run)
    assert run.is_finished, everything_said(run)
    assert global_batches(run) == global_batches(undisturbed)


@pytest.mark.slow
def test_an_admins_requeue_is_survived(jobs: Jobs, undisturbed: RunDir) -> None:
    run = jobs.submit("requeued")
    jobs.wait_for_step(run, 14)
    job = jobs.job(run)
    assert job is not None
    subprocess.run(["scontrol", "requeue", job.job_id], check=True)
    jobs.wait_for_end(run)
    assert_as_if_nothing_had_happened(run, undisturbed)


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled(jobs: Jobs) -> None:
    run = jobs.submit("scancelled")
    jobs.wait_for_step(run, 3)
    assert "cancelled job" in jobs.tahoe("cancel", "--now", str(run.path)).stdout
    jobs.wait_for_end(run)
    assert not run.is_finished
    assert jobs.job(run) is None


@pytest.mark.slow
def test_a_crash_that_repeats_is_given_up(jobs: Jobs) -> None:
    run = jobs.submit(
        "hopeless", "slurm.max_consecutive_failures=1", "slurm.srun_args=['--no-such-option']"
    )
    jobs.wait_for_end(run)
    outcome = run.read_json(run.outcome_file)
    assert outcome is not None
    assert outcome["outcome"] == "failed_permanently"
    assert "crashed 2 times in a row" in outcome["reason"]
    assert len(ends(run)) == 2


def shown_steps(jobs: Jobs, run: RunDir) -> list[int]:
    """Return the steps of a curve in MLflow, in the order in which it draws them."""
    mark = run.read_json(run.mlflow_file)
    assert mark is not None
    with open_client(f"sqlite:///{jobs.tahoe.cwd}/mlflow.db") as store:
        points = store.get_metric_history(mark["run_id"], "train/loss")
    return [point.step for point in sorted(points, key=lambda point: point.timestamp)]
