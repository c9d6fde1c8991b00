"""Metrics of images with several labels: each class is a ranking, and a yes or no, of its own."""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ClassMetrics(NamedTuple):
    """The metrics of each class, from the scores of all images of a split.

    average_precision: float64 (classes,), 0..1; NaN for a class that no image shows.
    true_positives, false_positives, false_negatives: int64 (classes,), at the threshold.
    """

    average_precision: NDArray[np.float64]
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, threshold: float) -> Self:
        """Compute the metrics.

        Args:
            scores: logits, float32 (samples, classes); -inf where a class is never predicted.
            labels: bool (samples, classes).
            threshold: the probability above which a class counts as predicted.
        """
        predicted = scores.double().sigmoid() > threshold
        counts = [predicted & labels, predicted & ~labels, ~predicted & labels]
        pairs = zip(scores.T.numpy(), labels.T.numpy(), strict=True)
        return cls(
            np.array([average_precision(*pair) for pair in pairs], dtype=np.float64),
            *(count.sum(dim=0).numpy() for count in counts),
        )

    @classmethod
    def concatenate(cls, parts: "list[ClassMetrics]") -> Self:
        """Join the metrics of consecutive classes."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    @property
    def num_unseen(self) -> int:
        """The number of classes that no image shows, which `mean_average_precision` leaves out."""
        return int(np.isnan(self.average_precision).sum())

    @property
    def mean_average_precision(self) -> float:
        """The mean over the classes that some image shows, 0..1; NaN if there are none."""
        known = self.average_precision[~np.isnan(self.average_precision)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def micro_f1(self) -> float:
        """The F1 of all pairs of image and class, 0..1."""
        return float(_f1(*(count.sum() for count in self[1:])))

    @property
    def class_f1(self) -> NDArray[np.float64]:
        """The F1 of each class, 0..1; NaN for a class that no image shows."""
        f1 = _f1(*self[1:])
        return np.where(np.isnan(self.average_precision), np.nan, f1)


def average_precision(scores: NDArray[np.float32], is_positive: NDArray[np.bool_]) -> float:
    """Compute the sum of precision times increase of recall, over falling distinct scores.

    As scikit-learn's `average_precision_score`: not interpolated, and images of equal scores are
    taken together. NaN without positives.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(is_positive[order])
    if not len(hits) or not hits[-1]:
        return float("nan")
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)
    gained = np.diff(hits[last], prepend=0)
    return float((hits[last] / (last + 1) * gained).sum() / hits[-1])


def class_logits(log_probs: Tensor, readable: Tensor) -> Tensor:
    """Return the scores that images are ranked by, float32 (n, classes).

    Logits, which do not saturate as probabilities do. An image that cannot be read is never
    predicted to show a class: -inf, and so is an output of NaN.

    Args:
        log_probs: (n, classes, 2), as `losses.binary_log_probs` returns them.
        readable: bool (n,).
    """
    logits = log_probs[..., 0] - log_probs[..., 1]
    is_valid = readable[:, None] & ~logits.isnan()
    return torch.where(is_valid, logits, -torch.inf)


def _f1(true_positives: Any, false_positives: Any, false_negatives: Any) -> Any:
    """Compute 2 TP / (2 TP + FP + FN) of numbers or arrays; 0 where nothing is true or predicted.

    As scikit-learn's `f1_score`.
    """
    wrong = false_positives + false_negatives
    return 2 * true_positives / np.maximum(2 * true_positives + wrong, 1)
