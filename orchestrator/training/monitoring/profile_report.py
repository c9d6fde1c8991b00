"""Where the time of profiled steps went: one screen, with what limits the speed in its first line.

Times are those of the steps' own clock (`step_timer`), on all ranks. Gradients that are sent while
a rank still computes take no time there: communication is what nothing overlaps with.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.run.node_times import RankTimes

_MIN_EXCESS = 0.1  # of the slowest rank, to be named
_ADVICE = {
    "data-bound": "more data.num_workers or a cheaper recipe.augment may help",
    "compute-bound": "recipe.precision=bf16 or recipe.compile=true may help",
    "communication-bound": "strategy.comm_hook or a faster network may help",
}


class Shares(NamedTuple):
    """Seconds that a rank's steps take together, by what it did.

    Args:
        data_s: waiting for data.
        compute_s: forward and backward pass.
        communicate_s: waiting for the gradients of other ranks, and for their transfer.
        other_s: the optimizer, metrics, logs.
    """

    data_s: float
    compute_s: float
    communicate_s: float
    other_s: float


@dataclass(frozen=True)
class Operator:
    """An operator and its seconds without those of the operators that it calls."""

    name: str
    self_s: float
    num_calls: int


def shares(rank: RankTimes, elapsed_s: float) -> Shares:
    """Split the time of a rank's steps, which their parts may exceed by errors of the clocks."""
    compute_s = max(rank.busy_s - rank.data_wait_s, 0.0)
    other_s = max(elapsed_s - rank.busy_s - rank.reduce_s, 0.0)
    return Shares(rank.data_wait_s, compute_s, rank.reduce_s, other_s)


def bound(of: Shares) -> str:
    """Name what takes most of the time; the optimizer computes too."""
    kinds = (of.data_s, of.compute_s + of.other_s, of.communicate_s)
    return [*_ADVICE][kinds.index(max(kinds))]


def typical_rank(ranks: Sequence[RankTimes]) -> int:
    """Return the rank whose own work takes the median time; of two, the faster one.

    A mean would hide that all others wait for one slow rank.
    """
    busy = [rank.busy_s for rank in ranks]
    return busy.index(statistics.median_low(busy))


def make_report(
    steps: tuple[int, int],
    ranks: Sequence[tuple[RankTimes, int, float]],
    nodes: Sequence[str],
    operators: Sequence[Operator],
    device_s: float | None,
) -> str:
    """Write the report, at most 80 columns wide but for names.

    Args:
        steps: the first and the last step, by the number of steps done.
        ranks: the times of each rank, the number of steps timed, and the time of all steps.
        operators: those of rank 0 that take the most time.
        device_s: the time of rank 0's kernels; None without a GPU.
    """
    num_steps = steps[1] - steps[0] + 1
    means = [  # of a step: the first of an attempt is not timed
        (RankTimes(*(t / max(n, 1) for t in times)), elapsed_s / num_steps)
        for times, n, elapsed_s in ranks
    ]
    typical = typical_rank([times for times, _ in means])
    of = shares(*means[typical])
    step_s, kind = sum(of), bound(of)
    slowest = _slowest(means, nodes, typical)
    waits_for_it = slowest and kind == "communication-bound"
    advice = "the ranks wait for the slowest of them" if waits_for_it else _ADVICE[kind]
    rows = {
        "waits for data": of.data_s,
        "forward and backward": of.compute_s,
        "waits for other ranks": of.communicate_s,
        "optimizer and the rest": of.other_s,
    }
    lines = [
        f"steps {steps[0]} to {steps[1]} are {kind}: {advice}",
        f"of a step of {1000 * step_s:.1f} ms on rank {typical} (the median of {len(ranks)}):",
        *(
            f"  {name:24}{1000 * t:9.1f} ms {100 * t / max(step_s, 1e-9):5.0f} %"
            for name, t in rows.items()
        ),
        *slowest,
        *_device(device_s, means[0][1] * num_steps),
        "operators of rank 0 by self time:",
        *(
            f"  {1000 * op.self_s / num_steps:9.2f} ms {op.num_calls / num_steps:7.0f} calls a "
            f"step  {op.name}"
            for op in operators
        ),
        "The profiler itself slows small operators. Gradients sent while a rank still",
        "computes are not counted as waiting.",
    ]
    return "\n".join(lines)


def _slowest(
    means: Sequence[tuple[RankTimes, float]], nodes: Sequence[str], typical: int
) -> list[str]:
    busy = [times.busy_s for times, _ in means]
    slowest = busy.index(max(busy))
    if busy[slowest] <= (1 + _MIN_EXCESS) * busy[typical]:
        return []
    return [
        f"rank {slowest} on {nodes[slowest]} is the slowest: {1000 * busy[slowest]:.1f} ms before "
        f"it has its gradients,",
        f"  {1000 * means[slowest][0].data_wait_s:.1f} of them for data, and rank {typical} "
        f"{1000 * busy[typical]:.1f} ms",
    ]


def _device(device_s: float | None, elapsed_s: float) -> list[str]:
    if device_s is None:
        return []
    fraction = device_s / max(elapsed_s, 1e-9)
    which = "device-bound" if fraction > 0.8 else "host-bound, or waiting"
    return [f"kernels run {100 * fraction:.0f} % of the time on rank 0: {which}"]
