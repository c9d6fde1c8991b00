"""The training metrics of a step, reduced over the ranks and checked."""

import math
from collections.abc import Mapping

import torch

from orchestrator.config.schema import Config
from orchestrator.metrics import rank_parts
from orchestrator.run.outcome import FatalRunError
from orchestrator.run.plan import Plan
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import check_bad_fraction
from orchestrator.training.step.rank_times import RankTimesLog
from orchestrator.training.step.train_batches import TrainBatches


class StepMetrics:
    """Reduces the metrics of a step, and of the batches since the last call, over the ranks."""

    def __init__(
        self,
        batches: TrainBatches,
        rank_times: RankTimesLog,
        config: Config,
        plan: Plan,
        world: World,
        first_step: int,
    ) -> None:
        self._batches, self._config, self._plan, self._world = batches, config, plan, world
        self._rank_times = rank_times
        self._num_checked = first_step

    def reduce(self, local: Mapping[str, torch.Tensor], num_done: int) -> dict[str, float]:
        """Compute the metrics over all ranks, after `num_done` steps.

        Training metrics are those of this one step, not a mean since the last call, so that they do
        not depend on when training was interrupted.

        Raises:
            FatalRunError: the run has diverged; on every rank.
            DataError: too many samples could not be read; on every rank.
        """
        samples, meter = self._batches.samples, self._batches.meter
        own = {name: value.item() for name, value in local.items()}
        elapsed_s = meter.elapsed_s
        parts = rank_parts(own | meter.pop(), self._world.size)
        row = (*parts.values(), samples.num_bad, samples.num_seen)
        times = self._rank_times.pop()
        sent = torch.cat([torch.tensor(row, dtype=torch.float64), times.flatten()])
        total = self._world.sum(sent)
        *sums, num_bad, num_seen = total[: len(row)].tolist()
        metrics = dict(zip(parts, sums, strict=True))
        metrics |= self._rank_times.log(total[len(row) :].view_as(times), num_done, elapsed_s)
        self._check_loss(metrics["train/loss"], num_done)
        # Of an epoch at least: one bad sample may exceed the fraction of the first few steps.
        num_samples = max(int(num_seen), self._plan.num_train)
        check_bad_fraction(int(num_bad), num_samples, self._config.data.max_bad_fraction)
        self._num_checked = num_done
        return metrics

    def _check_loss(self, loss: float, num_done: int) -> None:
        if not math.isfinite(loss):
            raise FatalRunError(
                f"diverged: the loss became {loss} between steps {self._num_checked + 1} and "
                f"{num_done}. Lower recipe.optimizer.lr, lengthen the warm-up, or set "
                "recipe.clip_grad_norm."
            )
