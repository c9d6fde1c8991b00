"""The times that each node takes for a step, and the nodes that are slower than the others.

A step is as slow as its slowest rank, so a node counts with its slowest rank. Rank 0 writes a line
each time that metrics are logged; `tahoe status` and MLflow's tag come from the last of them.
"""

import json
import os
import socket
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.redact import mlflow_safe_name
from orchestrator.run.rundir import RunDir, reading

_MIN_STEPS = 100  # over which a node must be slow
_MIN_EXCESS = 0.1
_MAX_NODES = 64  # of a line; those of more nodes that are the slowest
_TAIL_BYTES = 1 << 20  # enough for 100 lines


class RankTimes(NamedTuple):
    """Seconds of a rank's steps.

    Args:
        busy_s: until its own gradients were complete, waiting for data included.
        data_wait_s: waiting for data.
        reduce_s: from then until the gradients of all ranks were there.
    """

    busy_s: float
    data_wait_s: float
    reduce_s: float


class NodeTimes(NamedTuple):
    """Mean seconds a step of a node's slowest rank, and the fraction that its ranks wait."""

    busy_s: float
    data_wait_s: float
    wait_fraction: float


def node_name() -> str:
    """Return Slurm's name of this machine, or its own."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return mlflow_safe_name(name).replace("/", "_")


def node_times(
    nodes: Sequence[str], ranks: Sequence[RankTimes], num_steps: int, elapsed_s: float
) -> dict[str, NodeTimes]:
    """Combine the times of ranks over some steps to those of their nodes.

    A rank that comes last waits for nothing but the transfer, so the shortest wait of all ranks is
    no waiting for others.

    Args:
        nodes: the node of each rank.
        ranks: the sums of each rank.
        elapsed_s: the time of all these steps.
    """
    transfer_s = min(rank.reduce_s for rank in ranks)
    by_node: dict[str, list[RankTimes]] = defaultdict(list)
    for node, rank in zip(nodes, ranks, strict=True):
        by_node[node].append(rank)
    times = {}
    for node, own in by_node.items():
        slowest = max(own)
        waiting_s = statistics.fmean(rank.reduce_s for rank in own) - transfer_s
        times[node] = NodeTimes(
            slowest.busy_s / num_steps, slowest.data_wait_s / num_steps, waiting_s / elapsed_s
        )
    return times


def median_busy_s(times: Mapping[str, NodeTimes]) -> float:
    """Return the median over the nodes; of two, the faster one."""
    return statistics.median_low(time.busy_s for time in times.values())


def to_json(times: Mapping[str, NodeTimes], **facts: Any) -> dict[str, Any]:
    """Return a line of the file, `facts` being its step, attempt and number of steps."""
    slowest = sorted(times, key=times.__getitem__, reverse=True)[:_MAX_NODES]
    return {
        **facts,
        "num_nodes": len(times),
        "median_busy_s": median_busy_s(times),
        "median_data_wait_s": statistics.median_low(time.data_wait_s for time in times.values()),
        "nodes": {node: times[node]._asdict() for node in slowest},
    }


@dataclass(frozen=True)
class SlowNode:
    """A node on which steps take longer than on the median node.

    Args:
        excess: by what fraction of the median.
        data_excess: by what fraction of it the node waits longer for data.
        num_steps, num_nodes: what it was measured over.
    """

    node: str
    excess: float
    data_excess: float
    num_steps: int
    num_nodes: int

    def __str__(self) -> str:
        waits = 2 * self.data_excess > self.excess
        return (
            f"{self.node} {'waits for data: its steps take' if waits else 'computes'} "
            f"{100 * self.excess:.0f} % longer than the median of {self.num_nodes} nodes over the "
            f"last {self.num_steps} steps"
        )


def slow_nodes(run: RunDir) -> list[SlowNode]:
    """Find the slow nodes of the last attempt, the slowest first."""
    lines = _last_lines(run)
    num_steps = sum(line["num_steps"] for line in lines)
    if num_steps < _MIN_STEPS:
        return []
    median_s = sum(line["median_busy_s"] * line["num_steps"] for line in lines)
    slow = []
    for node in set.intersection(*({*line["nodes"]} for line in lines)):
        excess, data_excess = (
            sum(_above_median_s(line, node, name) for line in lines) / median_s
            for name in ("busy_s", "data_wait_s")
        )
        if excess > _MIN_EXCESS:
            slow.append(SlowNode(node, excess, data_excess, num_steps, lines[-1]["num_nodes"]))
    return sorted(slow, key=lambda node: -node.excess)


def _above_median_s(line: Any, node: str, name: str) -> float:
    return float(line["num_steps"] * (line["nodes"][node][name] - line[f"median_{name}"]))


def _last_lines(run: RunDir) -> list[Any]:
    """Read the last lines of one attempt that make enough steps together."""
    lines: list[Any] = []
    for line in _lines_from_end(run):
        if lines and line["attempt"] != lines[0]["attempt"]:
            break
        lines.insert(0, line)
        if sum(line["num_steps"] for line in lines) >= _MIN_STEPS:
            break
    return lines


def _lines_from_end(run: RunDir) -> Iterator[Any]:
    try:
        with reading(run.node_times_file), run.node_times_file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    for line in reversed(lines):
        try:
            yield json.loads(line)
        except ValueError:  # torn by a crash, or cut by the limit
            continue
