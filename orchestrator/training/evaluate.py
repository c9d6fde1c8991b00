"""The validation split under the run's protocol: each sample exactly once, on any number of ranks.

The batches are fixed by the data set, not by the ranks: batch b goes to rank b mod world size, each
rank fills its rows of one table, and the table is summed in batch order. So every world size gives
the same figures, and no sample is padded in or dropped.
"""

import logging

import torch
from torch import nn

from data_sharding.batches import EvalSet
from data_sharding.loader import load
from orchestrator.schema import Config
from orchestrator.training import watchdog
from orchestrator.training.device import Device
from orchestrator.training.objectives import Objective
from orchestrator.training.world import World

log = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    dataset: EvalSet,
    config: Config,
    world: World,
    device: Device,
) -> dict[str, float]:
    """Return the figures of an objective: means over the samples of the split."""
    num_figures = len(objective.figures)
    table = torch.zeros(len(dataset), num_figures + 1, dtype=torch.float64)
    mine = range(world.rank, len(dataset), world.size)
    batches = load(dataset, mine, config.data.num_workers, pin_memory=device.is_cuda)
    model.eval()
    for number, batch in zip(mine, device.feed(batches), strict=True):
        for line in batch.bad:
            log.warning("counted as wrong: %s", line)
        with device.autocast():
            output = model(batch.images)
        table[number, :num_figures] = objective.judge(output, batch).cpu()
        table[number, -1] = len(batch.labels)
        watchdog.alive()
    model.train()
    *sums, count = world.sum(table).sum(dim=0).tolist()
    num_samples = dataset.shards.manifest.num_samples
    assert count == num_samples, f"evaluated {count} of {num_samples} samples"
    return {name: total / count for name, total in zip(objective.figures, sums, strict=True)}
