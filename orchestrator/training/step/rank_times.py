"""The times of all ranks, in the reduction of the metrics, and the log of the nodes' times."""

import logging

import torch
from torch import Tensor

from orchestrator.run.node_times import RankTimes, median_busy_s, node_name, node_times, to_json
from orchestrator.run.rundir import RunDir, append_json_line
from orchestrator.training.distributed.world import World
from orchestrator.training.monitoring.step_timer import StepTimer

log = logging.getLogger(__name__)


class RankTimesLog:
    """Exchanges the times of the ranks by a sum, to which each adds its own row of a table."""

    def __init__(self, timer: StepTimer, world: World, run: RunDir, attempt: int) -> None:
        self._timer, self._world, self._run, self._attempt = timer, world, run, attempt
        self._nodes = world.gather_objects(node_name())

    def pop(self) -> Tensor:
        """Return this rank's times since the last call in an otherwise empty table.

        Float64 (world size, 4): `RankTimes` and the number of steps.
        """
        times, num_steps = self._timer.pop()
        table = torch.zeros(self._world.size, len(times) + 1, dtype=torch.float64)
        table[self._world.rank] = torch.tensor((*times, num_steps))
        return table

    def log(self, table: Tensor, num_done: int, elapsed_s: float) -> dict[str, float]:
        """Log the times of the nodes; return metrics if several ranks have computed a step.

        Args:
            table: the sum of all ranks' tables.
            elapsed_s: the time since the last call.
        """
        num_steps = int(table[0, -1])
        if self._world.size == 1 or num_steps == 0:
            return {}
        ranks = [RankTimes(*row) for row in table[:, :-1].tolist()]
        times = node_times(self._nodes, ranks, num_steps, elapsed_s)
        if self._world.is_main and len(times) > 1:
            facts = {"step": num_done, "attempt": self._attempt, "num_steps": num_steps}
            try:
                append_json_line(self._run.node_times_file, to_json(times, **facts))
            except OSError as error:  # a full disk: no reason to fail
                log.warning("the times of the nodes are not written for now: %s", error)
        waits = [times[node].wait_fraction for node in self._nodes]
        return {
            "perf/wait_fraction": sum(waits) / len(waits),
            "perf/node_time_p50_s": median_busy_s(times),
            "perf/node_time_max_s": max(time.busy_s for time in times.values()),
        }
