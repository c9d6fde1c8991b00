"""The metrics that rank all images of a split by their scores, on any number of ranks.

Each rank keeps the scores of its own images in host memory, 5 bytes an image and class. They are
gathered some classes at a time: every rank gets the whole columns, so all compute the same metrics.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from orchestrator.training.distributed.world import World
from orchestrator.training.monitoring import watchdog
from orchestrator.training.task.class_metrics import ClassMetrics

_GATHERED_BYTES = 64 << 20  # at a time
log = logging.getLogger(__name__)


class RankScores:
    """The scores and labels of the samples that this rank has evaluated."""

    def __init__(self, num_classes: int, num_samples: int) -> None:
        self._num_classes, self._num_samples = num_classes, num_samples
        self._ids: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, ids: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Keep the scores of a batch.

        Args:
            ids: int64 (n,), of the samples.
            scores: float32 (n, classes).
            labels: (n, classes), 0 or 1.
        """
        self._ids.append(ids.clone())  # the batch is a buffer
        self._scores.append(scores.cpu())
        self._labels.append((labels > 0).cpu())

    def metrics(self, world: World, threshold: float) -> dict[str, float]:
        """Compute the metrics of all ranks' samples, in percent; all ranks must call this."""
        width = max(1, _GATHERED_BYTES // (8 * self._num_samples))
        parts = []
        for first in range(0, self._num_classes, width):
            parts.append(self._gather(world, slice(first, first + width), threshold))
            watchdog.heartbeat()
        metrics = ClassMetrics.concatenate(parts)
        if metrics.num_unseen and world.is_main:
            _log_unseen(metrics.num_unseen, self._num_classes)
        percent = {"map": metrics.mean_average_precision, "f1": metrics.micro_f1}
        return {f"val/{name}": 100 * value for name, value in percent.items()}

    def _gather(self, world: World, columns: slice, threshold: float) -> ClassMetrics:
        width = len(range(*columns.indices(self._num_classes)))
        table = torch.zeros(2, self._num_samples, width)
        for ids, scores, labels in zip(self._ids, self._scores, self._labels, strict=True):
            table[0, ids], table[1, ids] = scores[:, columns], labels[:, columns].float()
        scores, labels = world.sum(table)
        return ClassMetrics.of(scores, labels > 0, threshold)


@cache
def _log_unseen(num_unseen: int, num_classes: int) -> None:
    """Log, once, the classes that the mean leaves out."""
    num_seen = num_classes - num_unseen
    log.info("val/map is over %d of %d classes: val has no image of others", num_seen, num_classes)
