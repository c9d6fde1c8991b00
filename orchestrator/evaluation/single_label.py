"""Metrics of images with one label each: top-1, top-5, ImageNet's reassessed labels, confusion."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_sharding.loading.split_reader import SplitReader
from orchestrator.config.parse import ConfigError
from orchestrator.metrics import SINGLE_LABEL_METRICS
from orchestrator.training.task.losses import predict, sum_metrics

_MAX_TABLE = 1000  # classes; a larger confusion matrix is mostly zeros: 800 MB of 20,000
_NAME = re.compile(r"ILSVRC2012_val_\d{8}$")
Metrics = dict[str, float | None]  # percent, nats; `real_top1`: of images with reassessed labels


@dataclass(frozen=True)
class GroundTruth:
    """Labels (n,), whether each image is readable (n,), and all classes that each shows."""

    labels: Tensor
    readable: Tensor
    real: list[list[int]] | None = None

    def metrics(self, log_probs: Tensor) -> Metrics:
        """Compute the metrics of log-probabilities (n, classes)."""
        means = sum_metrics(log_probs, self.labels, self.readable) / len(self.labels)
        names = (name.removeprefix("val/") for name in SINGLE_LABEL_METRICS)
        metrics: Metrics = dict(zip(names, means.tolist(), strict=True))
        return metrics | {"real_top1": self._real_top1(predict(log_probs, self.readable))}

    def by_class(self, log_probs: Tensor) -> dict[str, tuple[float | None, ...]]:
        """Compute the top-1 accuracy of each class in percent; None for one without images."""
        num_classes = log_probs.shape[1]
        return {
            "class_top1": class_top1(count_confusion(log_probs, self, num_classes), num_classes)
        }

    def _real_top1(self, predicted: Tensor) -> float | None:
        if self.real is None:
            return None
        pairs = zip(predicted.tolist(), self.real, strict=True)
        hits = [number in classes for number, classes in pairs if classes]
        return 100 * sum(hits) / len(hits) if hits else None


def real_labels(shards: SplitReader) -> list[list[int]]:
    """Return all classes that each image shows (Beyer et al., Are we done with ImageNet?).

    They are known by the images' names in ImageNet, which `tahoe shard imagenet` and `folder` keep.
    """
    from timm.data.real_labels import RealLabelsImagenet

    known = RealLabelsImagenet([""] * 50_000).real_labels  # type: ignore[no-untyped-call]
    labels = []
    for shard, sample in shards.locate(np.arange(len(shards))):
        key = shards.store.open(shards.manifest.shards[shard]).key(sample)
        name = _NAME.search(key)
        if name is None:
            raise ConfigError(
                f"--real-labels: image {key} is not named as one of ImageNet's validation images "
                "(ILSVRC2012_val_00000001), so its labels cannot be looked up",
                value=key,
                hint="Leave --real-labels out.",
            )
        labels.append(known[f"{name[0]}.JPEG"])
    return labels


def count_confusion(log_probs: Tensor, truth: GroundTruth, num_classes: int) -> Tensor:
    """Count the pairs of label and prediction, (pairs, 3); a prediction `num_classes` is none.

    Only those that occur: a matrix of 20,000 classes would be 3 GB, and nearly all of it zeros.
    """
    predicted = predict(log_probs, truth.readable)
    predicted = torch.where(predicted < 0, num_classes, predicted)
    pairs, counts = torch.stack([truth.labels, predicted], dim=1).unique(dim=0, return_counts=True)
    return torch.cat([pairs, counts[:, None]], dim=1)


def class_top1(confusion: Tensor, num_classes: int) -> tuple[float | None, ...]:
    """Compute the top-1 accuracy of each class from the pairs of `count_confusion`."""
    label, predicted, count = confusion.unbind(dim=1)
    is_right = label == predicted
    totals = torch.zeros(num_classes, dtype=torch.long).index_add_(0, label, count)
    rights = torch.zeros_like(totals).index_add_(0, label[is_right], count[is_right])
    pairs = zip(rights.tolist(), totals.tolist(), strict=True)
    return tuple(100 * right / total if total else None for right, total in pairs)


def write_confusion(file: Path, confusion: Tensor, classes: Sequence[str]) -> None:
    """Write a matrix as CSV; of more than _MAX_TABLE classes the pairs, by falling count."""
    names = [*classes, "none"]
    if len(classes) <= _MAX_TABLE:
        counts = torch.zeros((len(classes), len(names)), dtype=torch.long)
        counts[confusion[:, 0], confusion[:, 1]] = confusion[:, 2]
        rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        header = ["", *names]
    else:
        by_count = confusion[confusion[:, 2].argsort(descending=True, stable=True)]
        rows = [[names[i], names[j], count] for i, j, count in by_count.tolist()]
        header = ["class", "taken for", "images"]
    with file.open("w", newline="") as table:
        csv.writer(table).writerows([header, *rows])
