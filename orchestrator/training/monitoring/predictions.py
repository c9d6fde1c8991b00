"""What a network answered to each validation sample, kept for the pictures of its run."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.run.rundir import RunDir, write_atomic


@dataclass(frozen=True)
class Predictions:
    """Of each sample: its label, the answer (-1: it could not be read), and its probability."""

    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def top_errors(self) -> NDArray[np.int64]:
        """The samples that were taken for something else, the most certain first."""
        wrong = np.flatnonzero((self.answers != self.labels) & (self.answers >= 0))
        return wrong[np.argsort(-self.probabilities[wrong], kind="stable")]

    def confusion(self, num_classes: int, most: int) -> NDArray[np.int64]:
        """Return how often which class (row) was taken for which (column).

        If there are more than `most`, neighbours count as one: 20,000 squared would be 3 GB.
        """
        known, side = self.answers >= 0, min(num_classes, most)
        rows, columns = (x[known] * side // num_classes for x in (self.labels, self.answers))
        counted = np.zeros((side, side), dtype=np.int64)
        np.add.at(counted, (rows, columns), 1)
        return counted


def save_predictions(run: RunDir, table: torch.Tensor) -> None:
    """Keep a table of label, answer and probability, float64 (samples, 3)."""
    labels, answers, probabilities = table.numpy().T
    file = io.BytesIO()
    np.savez_compressed(
        file,
        labels=labels.astype(np.int64),
        answers=answers.astype(np.int64),
        probabilities=probabilities,
    )
    write_atomic(run.predictions_file, file.getvalue())


def read_answers(run: RunDir) -> Predictions | None:
    """Return what was kept; None where the run has not ended, or has no classes."""
    if not run.predictions_file.exists():
        return None
    with np.load(run.predictions_file, allow_pickle=False) as kept:
        return Predictions(kept["labels"], kept["answers"], kept["probabilities"])
