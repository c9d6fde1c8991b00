"""Evaluation of the validation split: each sample exactly once, on any number of ranks.

The batches are fixed by the data set: batch b goes to rank b mod world size, each rank fills its
rows of one table, and the table is summed in batch order. So every world size gives the same
metrics, and no sample is padded or dropped. Where a forward pass takes all ranks, one without a
batch left computes zeros, which count nowhere. Metrics that rank images need the scores of all:
see `gathered_scores`.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from data_sharding.errors import DataError
from data_sharding.loading.datasets import EvalDataset
from data_sharding.loading.loader import iter_batches
from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.schema import Config
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import SampleLog, check_bad_fraction
from orchestrator.training.inputs.device import Device
from orchestrator.training.inputs.lookahead import first_error
from orchestrator.training.monitoring import watchdog
from orchestrator.training.step.gathered_scores import RankScores
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
    forward_is_collective: bool = False,
    with_predictions: bool = False,
) -> EvalResult:
    """Evaluate a model; a task without classes has no predictions.

    Args:
        forward_is_collective: whether all ranks must compute a forward pass together.

    Raises:
        DataError: data of some rank, or too many samples, cannot be read; on every rank.
    """
    num_means, num_samples = len(task.mean_names), dataset.shards.manifest.num_samples
    kept = RankScores(len(dataset.shards.manifest.classes), num_samples)
    predictions = torch.zeros(num_samples if with_predictions else 0, 3, dtype=torch.float64)
    table = torch.zeros(len(dataset), num_means + 2, dtype=torch.float64)
    indices = range(world.rank, len(dataset), world.size)  # of this rank's batches
    samples, error, num_passes = SampleLog("counted as wrong", "evaluated"), None, 0
    model.eval()
    try:
        batches = iter_batches(dataset, indices, config.data.num_workers, pin_memory=device.is_cuda)
        for index, (batch, output) in zip(indices, device.infer(model, batches), strict=True):
            num_passes += 1
            samples.add(batch)
            table[index, :num_means] = task.eval_metrics(output, batch).cpu()
            table[index, -2:] = torch.tensor([len(batch.bad), len(batch.labels)])
            if with_predictions and (rows := task.predictions(output, batch)) is not None:
                predictions[batch.ids] = rows.cpu()
            if (scores := task.scores(output, batch)) is not None:
                kept.add(batch.ids, scores, batch.labels)
            watchdog.heartbeat()
    except DataError as data_error:  # the other ranks wait for this one; NaN makes them raise too
        error, table[0, -1] = data_error, math.nan
    if forward_is_collective:
        for _ in range(num_passes, math.ceil(len(dataset) / world.size)):
            _compute_zeros(model, config, device)
            watchdog.heartbeat()
    model.train()
    samples.log_damaged()
    *sums, num_bad, count = world.sum(table).sum(dim=0).tolist()
    if math.isnan(count):
        raise first_error(world, error)
    assert count == num_samples, f"evaluated {count} of {num_samples} samples"
    check_bad_fraction(int(num_bad), num_samples, config.data.max_bad_fraction)
    metrics = {name: total / count for name, total in zip(task.mean_names, sums, strict=True)}
    if task.metric_names != task.mean_names:
        metrics |= kept.metrics(world, config.evaluate.threshold)
    metrics = {name: metrics[name] for name in task.metric_names}
    if not with_predictions:
        return EvalResult(metrics, None)
    predictions = world.sum(predictions)
    return EvalResult(metrics, predictions if predictions.any() else None)


def _compute_zeros(model: nn.Module, config: Config, device: Device) -> None:
    """Take part in a forward pass of the other ranks."""
    size = parse_protocol(config.data.eval_protocol).crop
    images = torch.zeros(1, config.data.in_channels, size, size, device=device.device)
    with device.autocast():
        model(images)
