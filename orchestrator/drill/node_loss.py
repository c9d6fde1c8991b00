"""The drill of `tahoe drill --on-nodes`: a job of Slurm that loses its nodes, one after the other.

The cluster is a local one (see slurm.local_cluster), whose nodes can be cut off and brought back.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.drill.faults import LOSE_A_NODE, Fault
from orchestrator.drill.inject import AttemptResult, Steps, how_it_ended
from orchestrator.jobs.submit import Submission, active_job, submit
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from slurm import client
from slurm.local_cluster import LocalCluster

_DEADLINE_S, _POLL_S = 300, 0.2


def local_cluster_for(num_losses: int, config: Config) -> LocalCluster:
    """Return the cluster that SLURM_CONF names, if it bears so many losses.

    Raises:
        ConfigError: a node that two attempts have died of is given to no other, so that too few
            might be left.
        RunError, LocalClusterError: there is no such cluster.
    """
    if "SLURM_CONF" not in os.environ:
        raise RunError(
            "--on-nodes loses nodes of a local cluster, and SLURM_CONF names none. Start one "
            "with `tahoe local-cluster up`, and export what it prints."
        )
    cluster = LocalCluster.open(Path(os.environ["SLURM_CONF"]).parent)
    num_nodes, needed = len(cluster.names), config.slurm.nodes
    if num_losses > 2 * num_nodes - needed:
        raise ConfigError(
            f"{num_losses} lost nodes are too many for a job of {needed} on a local cluster of "
            f"{num_nodes}: a node that two attempts have died of is left out, and the job would "
            f"wait for ever. Ask for --faults {max(0, 2 * num_nodes - needed)} at most."
        )
    return cluster


def run_with_node_losses(
    run: RunDir, config: Config, plan: Plan, faults: Sequence[Fault], cluster: LocalCluster
) -> list[AttemptResult]:
    """Run a job that loses a node once for each fault; return how its attempts went.

    Raises:
        RunError: what must come after a loss does not come.
        SlurmError: Slurm does not take the job.
    """
    submit(Submission(run, config, plan.num_steps))
    lost = Counter[str]()
    for number, fault in enumerate(faults, start=1):
        _wait(run, Steps(run, number).reach(fault.after_steps), f"the steps of attempt {number}")
        name = _pick_node(_nodes(run, number), lost, fault)
        lost[name] += 1
        cluster.kill_node(name)
        try:
            _wait(run, partial(_is_over, run, number), "Slurm to notice that a node is lost")
        finally:
            cluster.revive_node(name)
    _wait(run, lambda: active_job(run) is None, "the end of the job")
    codes = {
        line["attempt"]: line["exit_code"]
        for line in read_json_lines(run.attempts_file)
        if line.get("exit_code") is not None
    }
    return [
        how_it_ended(run, number, [LOSE_A_NODE] * (number <= len(faults)), codes.get(number, -1))
        for number in range(1, run.num_attempts + 1)
    ]


def _nodes(run: RunDir, attempt: int) -> list[str]:
    """Return the names of the nodes of an attempt."""
    (begun,) = [
        line["nodes"]
        for line in read_json_lines(run.attempts_file)
        if line["attempt"] == attempt and "nodes" in line
    ]
    return client.node_names(begun)


def _pick_node(names: Sequence[str], lost: Counter[str], fault: Fault) -> str:
    fewest = min(lost[name] for name in names)
    choice = [name for name in names if lost[name] == fewest]
    return choice[fault.target % len(choice)]


def _is_over(run: RunDir, attempt: int) -> bool:
    job = active_job(run)
    return run.num_attempts > attempt or job is None or job.state != "RUNNING"


def _wait(run: RunDir, is_true: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + _DEADLINE_S
    while not is_true():
        if time.monotonic() > until_s:
            raise RunError(
                f"waited {_DEADLINE_S} s for {what}, in vain. The job of {run.path} may still wait "
                f"or run: `tahoe status {run.shell_path}`, `tahoe cancel {run.shell_path}`."
            )
        time.sleep(_POLL_S)
