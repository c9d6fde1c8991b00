"""Evaluation of the validation split: each sample exactly once, on any number of ranks.

The batches are fixed by the data set: batch b goes to rank b mod world size, each rank fills its
rows of one table, and the table is summed in batch order. So every world size gives the same
metrics, and no sample is padded or dropped.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from data_sharding.errors import DataError
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.loader import iter_batches
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import SampleLog, check_bad_fraction
from orchestrator.training.inputs.device import Device
from orchestrator.training.inputs.lookahead import first_error
from orchestrator.training.monitoring import watchdog
from orchestrator.training.task.losses import Task


class EvalResult(NamedTuple):
    """Mean metrics over the samples of a split, and the predictions if requested.

    predictions: float64 (samples, 3): label, predicted class, its probability; class -1 stands for
    an image that could not be read.
    """

    metrics: dict[str, float]
    predictions: torch.Tensor | None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    dataset: EvalDataset,
    config: Config,
    world: World,
    device: Device,
    *,
    with_predictions: bool = False,
) -> EvalResult:
    """Evaluate a model; a task without classes has no predictions.

    Raises:
        DataError: data of some rank, or too many samples, cannot be read; on every rank.
    """
    num_metrics, num_samples = len(task.metric_names), dataset.shards.manifest.num_samples
    predictions = torch.zeros(num_samples if with_predictions else 0, 3, dtype=torch.float64)
    table = torch.zeros(len(dataset), num_metrics + 2, dtype=torch.float64)
    indices = range(world.rank, len(dataset), world.size)  # of this rank's batches
    samples, error = SampleLog("counted as wrong", "evaluated"), None
    model.eval()
    try:
        batches = iter_batches(dataset, indices, config.data.num_workers, pin_memory=device.is_cuda)
        for index, (batch, output) in zip(indices, device.infer(model, batches), strict=True):
            samples.add(batch)
            table[index, :num_metrics] = task.eval_metrics(output, batch).cpu()
            table[index, -2:] = torch.tensor([len(batch.bad), len(batch.labels)])
            if with_predictions and (rows := task.predictions(output, batch)) is not None:
                predictions[batch.ids] = rows.cpu()
            watchdog.heartbeat()
    except DataError as data_error:  # the other ranks wait for this one; NaN makes them raise too
        error, table[0, -1] = data_error, math.nan
    model.train()
    samples.log_damaged()
    *sums, num_bad, count = world.sum(table).sum(dim=0).tolist()
    if math.isnan(count):
        raise first_error(world, error)
    assert count == num_samples, f"evaluated {count} of {num_samples} samples"
    check_bad_fraction(int(num_bad), num_samples, config.data.max_bad_fraction)
    metrics = {name: total / count for name, total in zip(task.metric_names, sums, strict=True)}
    if not with_predictions:
        return EvalResult(metrics, None)
    predictions = world.sum(predictions)
    return EvalResult(metrics, predictions if predictions.any() else None)
