"""The predictions for the validation samples at the end of a run, kept for its plots."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_sharding.io.atomic_file import write_atomic
from orchestrator.run.rundir import RunDir


@dataclass(frozen=True)
class Predictions:
    """The label of each sample, its prediction (-1: unreadable), and the prediction's probability.

    All of them (num_samples,).
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def top_errors(self) -> NDArray[np.int64]:
        """The numbers of the wrongly predicted samples, by falling probability."""
        wrong = np.flatnonzero((self.predicted != self.labels) & (self.predicted >= 0))
        return wrong[np.argsort(-self.probabilities[wrong], kind="stable")]

    def confusion(self, num_classes: int, max_size: int) -> NDArray[np.int64]:
        """Count how often each class (row) is predicted as each class (column).

        Of more than `max_size` classes, neighbours share a row: 20,000 squared would be 3 GB.
        """
        known, size = self.predicted >= 0, min(num_classes, max_size)
        rows, columns = (x[known] * size // num_classes for x in (self.labels, self.predicted))
        counts = np.zeros((size, size), dtype=np.int64)
        np.add.at(counts, (rows, columns), 1)
        return counts


def save_predictions(run: RunDir, table: torch.Tensor) -> None:
    """Save a table of label, prediction and probability, float64 (num_samples, 3)."""
    labels, predicted, probabilities = table.numpy().T
    found = Predictions(labels.astype(np.int64), predicted.astype(np.int64), probabilities)
    file = io.BytesIO()
    np.savez_compressed(file, **vars(found))
    write_atomic(run.predictions_file, file.getvalue())


def read_predictions(run: RunDir) -> Predictions | None:
    """Read the predictions; None if the run has not finished, or has no classes."""
    if not run.predictions_file.exists():
        return None
    with np.load(run.predictions_file, allow_pickle=False) as arrays:
        return Predictions(**arrays)
