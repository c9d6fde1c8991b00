"""The validation split under the run's protocol: each sample exactly once, on any number of ranks.

The batches are fixed by the data set, not by the ranks: batch b goes to rank b mod world size, each
rank fills its rows of one table, and the table is summed in batch order. So every world size gives
the same figures, and no sample is padded in or dropped.
"""

import logging
import math

import torch
from torch import nn
from torch.nn import functional as F

from data_sharding.batches import EvalSet
from data_sharding.loader import Batch, load
from orchestrator.schema import Config
from orchestrator.training import watchdog
from orchestrator.training.device import Device
from orchestrator.training.world import World

log = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    model: nn.Module, dataset: EvalSet, config: Config, world: World, device: Device
) -> dict[str, float]:
    """Return val/top1 and val/top5 in percent, and val/loss (mean cross-entropy, nats).

    An image that cannot be read counts as wrong, with the loss of a uniform guess.
    """
    table = torch.zeros(len(dataset), 4, dtype=torch.float64)
    mine = range(world.rank, len(dataset), world.size)
    batches = load(dataset, mine, config.data.num_workers, pin_memory=device.is_cuda)
    model.eval()
    for number, batch in zip(mine, device.feed(batches), strict=True):
        for line in batch.bad:
            log.warning("counted as wrong: %s", line)
        table[number] = _judge(model, batch, device)
        watchdog.alive()
    model.train()
    correct1, correct5, loss, count = world.sum(table).sum(dim=0).tolist()
    num_samples = dataset.shards.manifest.num_samples
    assert count == num_samples, f"evaluated {count} of {num_samples} samples"
    return {
        "val/top1": 100 * correct1 / count,
        "val/top5": 100 * correct5 / count,
        "val/loss": loss / count,
    }


def _judge(model: nn.Module, batch: Batch, device: Device) -> torch.Tensor:
    """Return (correct among 1, correct among 5, loss summed, samples) of a batch; float64 (4,)."""
    with device.autocast():
        logits = model(batch.images)
    logits, labels, readable = logits.float(), batch.labels, batch.readable
    num_classes = logits.shape[1]
    if len(logits) > len(labels):  # several views of a sample: their probabilities are averaged
        views = logits.view(len(labels), -1, num_classes)
        logits = views.softmax(dim=2).mean(dim=1).log()
    best = logits.topk(min(5, num_classes), dim=1).indices
    hits = (best == labels[:, None]) & readable[:, None]
    losses = F.cross_entropy(logits, labels, reduction="none")
    losses = torch.where(readable, losses, math.log(num_classes))
    columns = (hits[:, 0], hits.any(dim=1), losses, torch.ones_like(losses))
    return torch.stack([column.double().sum() for column in columns]).cpu()
