"""The nodes of a job: those of an attempt, and whether its ranks can start again on them."""

import os
import re
from collections import Counter
from statistics import median
from typing import NamedTuple

from orchestrator.config.schema import Config
from orchestrator.run.outcome import read_attempts
from orchestrator.run.plan import ranks_fit
from orchestrator.run.rundir import RunDir
from slurm import client
from slurm.errors import SlurmError

_RESPONSE_TIMEOUT_S = 20.0
_EARLY_SIGNAL_S = 60.0  # Slurm may signal so much before `signal_delay_s` (man sbatch)
_UNKNOWN_STARTUP_S = 60.0
_LOG_HEAD_BYTES = 1 << 20
_MIN_EXCESS = 2  # deaths of a node over those of the others


class Allocation(NamedTuple):
    """The nodes and the time that a job has left after its ranks have crashed.

    Args:
        num_nodes: the nodes that an attempt can run on; None if too few are healthy.
        nodes: the nodes that respond and that no two attempts have died of.
        unhealthy: the other nodes of the job.
        time_left_s: the time until the limit; infinity without one.
        startup_s: the time from the start of an attempt to its first step.
        pause_s: the time until the next attempt.
        is_signalled: the job script was asked to stop.
        repeats: attempts in a row, without a new checkpoint, whose end was not the run's fault.
    """

    num_nodes: int | None
    nodes: tuple[str, ...]
    unhealthy: tuple[str, ...]
    time_left_s: float
    startup_s: float
    pause_s: float
    is_signalled: bool
    repeats: int


def restart_obstacle(
    allocation: Allocation, *, signal_delay_s: float, max_failures: int
) -> str | None:
    """Return the reason why the ranks cannot start again in their job; None if they can.

    A signal between two attempts finds no ranks, so the time must last until the next attempt is
    at its first step before Slurm may send the one that precedes the limit.
    """
    needed_s = signal_delay_s + _EARLY_SIGNAL_S + allocation.pause_s + allocation.startup_s
    if allocation.is_signalled:
        return "the job was asked to stop"
    if allocation.num_nodes is None:
        without = f", without {', '.join(allocation.unhealthy)}" if allocation.unhealthy else ""
        return f"too few of its nodes are healthy{without}"
    if allocation.time_left_s < needed_s:
        return f"its time limit is in {allocation.time_left_s:.0f} s, and {needed_s:.0f} are needed"
    if allocation.repeats > max_failures:
        return f"{allocation.repeats} attempts in a row have failed here"
    return None


def read_allocation(
    run: RunDir,
    config: Config,
    attempt: int,
    failed_node: str | None,
    *,
    is_signalled: bool,
    pause_s: float,
    repeats: int,
) -> Allocation | None:
    """Ask Slurm and the nodes of this job how they are; None without an answer of Slurm.

    Args:
        failed_node: the node that this attempt died of, whose end is not recorded yet.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    try:
        time_left_s, nodes = client.time_left_s(job_key()), client.job_nodes(job_key())
        given, listed = client.node_names(os.environ["SLURM_JOB_NODELIST"]), ",".join(nodes)
        unfit = client.unfit_nodes(listed) if nodes else []
    except SlurmError:
        return None
    bad = {*unfit, *bad_nodes(run, config, failed_node)}
    up = [node for node in nodes if node not in bad]
    healthy = client.responding_nodes(os.environ["SLURM_JOB_ID"], up, timeout_s=_RESPONSE_TIMEOUT_S)
    return Allocation(
        num_nodes=num_nodes(run, config, len(healthy)),
        nodes=tuple(healthy),
        unhealthy=tuple(node for node in given if node not in healthy),
        time_left_s=time_left_s,
        startup_s=_startup_s(run, attempt),
        pause_s=pause_s,
        is_signalled=is_signalled,
        repeats=repeats,
    )


def num_nodes(run: RunDir, config: Config, num_healthy: int) -> int | None:
    """Return the most nodes that an attempt can run on; None if too few are healthy.

    Of `slurm.nodes=4-8` it is the largest number, of those that Slurm gave but the spare ones,
    whose ranks fit the sizes of the run.
    """
    slurm, given = config.slurm, int(os.environ["SLURM_JOB_NUM_NODES"])
    most = min(slurm.max_nodes, given - slurm.spare_nodes, num_healthy)
    candidates = range(most, slurm.min_nodes - 1, -1)
    if slurm.min_nodes == slurm.max_nodes:
        return next(iter(candidates), None)
    num_train = (run.read_json(run.identity_file) or {})["data"]["num_train"]
    ranks = slurm.ranks_per_node
    return next((n for n in candidates if ranks_fit(config, n * ranks, num_train)), None)


def bad_nodes(run: RunDir, config: Config, *further: str | None) -> list[str]:
    """Return the nodes that attempts have died of, two more than of the run's other nodes.

    A run that is killed again and again on all its nodes keeps them.
    """
    failed = (line.get("failed_node") for line in read_attempts(run).values())
    deaths = Counter(node for node in (*failed, *further) if node)

    def excess(node: str) -> float:
        others = [count for other, count in deaths.items() if other != node]
        unharmed = max(0, config.slurm.max_nodes - 1 - len(others))
        return deaths[node] - median([*others, *[0] * unharmed] or [0])

    return sorted(node for node in deaths if excess(node) >= _MIN_EXCESS)


def job_key() -> str:
    """Return the id of this job: `ARRAY_INDEX` for an element of an array, whose own may be it."""
    environ = os.environ
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def _startup_s(run: RunDir, attempt: int) -> float:
    """Return the time to the first step of the newest attempt that got there."""
    for number in range(attempt, 0, -1):
        log = run.log_dir(number) / "rank-00000.log"
        if log.exists():
            with log.open("rb") as file:
                head = file.read(_LOG_HEAD_BYTES)
            if match := re.search(rb"first step after ([\d.]+) s", head):
                return float(match[1])
    return _UNKNOWN_STARTUP_S
