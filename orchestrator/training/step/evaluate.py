"""The validation split under the run's protocol: each sample exactly once, on any number of ranks.

The batches are fixed by the data set, not by the ranks: batch b goes to rank b mod world size, each
rank fills its rows of one table, and the table is summed in batch order. So every world size gives
the same figures, and no sample is padded in or dropped.
"""

import logging
import math
from typing import NamedTuple

import torch
from torch import nn

from data_sharding.errors import DataError
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.loader import iter_batches
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import DamagedSamples, check_bad_share
from orchestrator.training.inputs.device import Device
from orchestrator.training.inputs.lookahead import first_error
from orchestrator.training.monitoring import watchdog
from orchestrator.training.task.losses import Task

log = logging.getLogger(__name__)


class EvalResult(NamedTuple):
    """Means over the samples of a split by name, and what was answered to each, if asked for.

    answers: float64 (samples, 3): label, answer and the answer's probability; an answer of -1 is
    an image that could not be read.
    """

    metrics: dict[str, float]
    predictions: torch.Tensor | None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Task,
    dataset: EvalDataset,
    config: Config,
    world: World,
    device: Device,
    *,
    with_answers: bool = False,
) -> EvalResult:
    """Judge a network by an objective; an objective without classes has no answers.

    Raises:
        DataError: on all ranks alike, what one of them has met; or that too much is unreadable.
    """
    num_figures, num_samples = len(objective.metric_names), dataset.shards.manifest.num_samples
    answers = torch.zeros(num_samples if with_answers else 0, 3, dtype=torch.float64)
    table = torch.zeros(len(dataset), num_figures + 2, dtype=torch.float64)
    mine = range(world.rank, len(dataset), world.size)
    damaged, error = DamagedSamples("judged"), None
    model.eval()
    try:
        batches = iter_batches(dataset, mine, config.data.num_workers, pin_memory=device.is_cuda)
        for number, batch in zip(mine, device.prefetch_to_device(batches), strict=True):
            for line in batch.bad:
                log.warning("counted as wrong: %s", line)
            damaged.tell(batch.damaged)
            with device.autocast():
                output = model(batch.images)
            table[number, :num_figures] = objective.eval_metrics(output, batch).cpu()
            table[number, -2:] = torch.tensor([len(batch.bad), len(batch.labels)])
            if with_answers and (given := objective.predictions(output, batch)) is not None:
                answers[batch.ids] = given.cpu()
            watchdog.heartbeat()
    except DataError as found:  # the other ranks wait for this one, and are to end alike
        error, table[0, -1] = found, math.nan
    model.train()
    damaged.tell_number()
    *sums, num_bad, count = world.sum(table).sum(dim=0).tolist()
    if math.isnan(count):
        raise first_error(world, error)
    assert count == num_samples, f"evaluated {count} of {num_samples} samples"
    check_bad_share(int(num_bad), num_samples, config.data.max_bad_fraction)
    figures = {
        name: total / count for name, total in zip(objective.metric_names, sums, strict=True)
    }
    if not with_answers:
        return EvalResult(figures, None)
    answers = world.sum(answers)
    return EvalResult(figures, answers if answers.any() else None)  # where there are no classes
