"""`tahoe drill --on-nodes`: a Slurm job on a local cluster that loses its nodes one by one."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.drill.faults import LOSE_A_NODE, AttemptPlan, Fault
from orchestrator.drill.inject import AttemptResult, Steps, attempt_result
from orchestrator.jobs.submit import Submission, active_job, submit
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from slurm import client
from slurm.local_cluster import LocalCluster

_DEADLINE_S, _POLL_S = 300, 0.2


def local_cluster_for(num_losses: int, config: Config) -> LocalCluster:
    """Open the cluster that SLURM_CONF names; check that it has enough nodes to lose."""
    if "SLURM_CONF" not in os.environ:
        raise RunError(
            "SLURM_CONF names no local cluster, and --on-nodes loses nodes of one",
            value="SLURM_CONF",
            hint="Start one with `tahoe local-cluster up`, and export what it prints.",
        )
    cluster = LocalCluster.open(Path(os.environ["SLURM_CONF"]).parent)
    num_nodes, needed = len(cluster.names), config.slurm.min_nodes + config.slurm.spare_nodes
    max_losses = max(0, 2 * num_nodes - needed)
    if num_losses > max_losses:
        raise ConfigError(
            f"{num_losses} lost nodes are too many for a job of {needed} on a local cluster of "
            f"{num_nodes}: a node that two attempts have lost is excluded, so the job would wait "
            "forever",
            value=num_losses,
            hint=f"Use --faults {max_losses} at most.",
        )
    return cluster


def run_with_node_losses(
    cluster: LocalCluster, run: RunDir, config: Config, plan: Plan, attempts: Sequence[AttemptPlan]
) -> list[AttemptResult]:
    """Run a job that loses a node once for each fault; return the results of its attempts."""
    faults = [attempt.fatal for attempt in attempts if attempt.fatal]
    submit(Submission(run, config, plan.num_steps))
    losses = Counter[str]()
    for number, fault in enumerate(faults, start=1):
        _lose_node(run, cluster, number, fault, losses)
    _wait(run, lambda: active_job(run) is None, "the end of the job")
    codes = {
        line["attempt"]: line["exit_code"]
        for line in read_json_lines(run.attempts_file)
        if line.get("exit_code") is not None
    }
    return [
        attempt_result(run, number, [LOSE_A_NODE] * (number <= len(faults)), codes.get(number, -1))
        for number in range(1, run.num_attempts + 1)
    ]


def _lose_node(
    run: RunDir, cluster: LocalCluster, attempt: int, fault: Fault, losses: Counter[str]
) -> None:
    steps = Steps(run, attempt)
    _wait(run, lambda: steps.reached(fault.after_steps), f"the steps of attempt {attempt}")
    names = _node_names(run, attempt)
    fewest = min(losses[name] for name in names)
    candidates = [name for name in names if losses[name] == fewest]
    name = candidates[fault.target % len(candidates)]
    losses[name] += 1
    cluster.kill_node(name)
    try:
        _wait(run, lambda: _is_over(run, attempt), "Slurm to notice that a node is lost")
    finally:
        cluster.revive_node(name)


def _node_names(run: RunDir, attempt: int) -> list[str]:
    (nodes,) = [
        line["nodes"]
        for line in read_json_lines(run.attempts_file)
        if line["attempt"] == attempt and "nodes" in line
    ]
    return client.node_names(nodes)


def _is_over(run: RunDir, attempt: int) -> bool:
    job = active_job(run)
    return run.num_attempts > attempt or job is None or job.state != "RUNNING"


def _wait(run: RunDir, is_true: Callable[[], bool], event: str) -> None:
    until_s = time.monotonic() + _DEADLINE_S
    while not is_true():
        if time.monotonic() > until_s:
            raise RunError(
                f"timed out after {_DEADLINE_S} s waiting for {event}; the job of {run.path} may "
                "still wait or run",
                value=run.path,
                hint=f"See `tahoe status {run.shell_path}`; `tahoe cancel {run.shell_path}` ends "
                "it.",
            )
        time.sleep(_POLL_S)
