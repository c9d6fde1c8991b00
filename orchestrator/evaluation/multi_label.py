"""Metrics of images with several labels each: average precision and F1, of all classes and each."""

import math
from dataclasses import dataclass

from torch import Tensor

from orchestrator.training.task.class_metrics import ClassMetrics, class_logits
from orchestrator.training.task.losses import binary_losses


@dataclass(frozen=True)
class MultiLabelTruth:
    """Labels (n, classes), 0 or 1, whether each image is readable (n,), and the threshold of F1."""

    labels: Tensor
    readable: Tensor
    threshold: float

    def metrics(self, log_probs: Tensor) -> dict[str, float | None]:
        """Compute the metrics of log-probabilities (n, classes, 2), in percent and nats."""
        found = self._class_metrics(log_probs)
        losses = binary_losses(log_probs, self.labels, self.readable)
        return {
            "map": _percent(found.mean_average_precision),
            "f1": _percent(found.micro_f1),
            "loss": losses.mean().item(),
            "threshold": self.threshold,
        }

    def by_class(self, log_probs: Tensor) -> dict[str, tuple[float | None, ...]]:
        """Compute the metrics of each class in percent; None for one that no image shows."""
        found = self._class_metrics(log_probs)
        return {
            "class_ap": tuple(map(_percent, found.average_precision.tolist())),
            "class_f1": tuple(map(_percent, found.class_f1.tolist())),
        }

    def _class_metrics(self, log_probs: Tensor) -> ClassMetrics:
        scores = class_logits(log_probs, self.readable)
        return ClassMetrics.of(scores, self.labels > 0, self.threshold)


def _percent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else 100 * fraction
