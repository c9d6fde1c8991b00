"""Average precision and F1 are scikit-learn's, on any number of ranks."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, f1_score

from orchestrator.training.distributed.world import World
from orchestrator.training.step import gathered_scores
from orchestrator.training.step.gathered_scores import RankScores
from orchestrator.training.task.class_metrics import ClassMetrics, average_precision, class_logits

ties = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0])
logits = st.one_of(ties, st.floats(-30, 30, width=32))


@settings(max_examples=30)
@given(data=st.data(), num=st.integers(1, 40))
def test_average_precision_is_scikit_learns(data: st.DataObject, num: int) -> None:
    scores = data.draw(arrays(np.float32, num, elements=logits))
    positive = data.draw(arrays(bool, num))
    found = average_precision(scores, positive)
    if not positive.any():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(positive, scores), abs=1e-9)


@settings(max_examples=15)
@given(data=st.data(), num=st.integers(1, 20), threshold=st.sampled_from([0.2, 0.5, 0.9]))
def test_f1_is_scikit_learns(data: st.DataObject, num: int, threshold: float) -> None:
    scores = torch.from_numpy(data.draw(arrays(np.float32, (num, 3), elements=logits)))
    labels = torch.from_numpy(data.draw(arrays(bool, (num, 3))))
    found = ClassMetrics.of(scores, labels, threshold)
    predicted = scores.double().sigmoid() > threshold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without a positive
        by_class = f1_score(labels, predicted, average=None, zero_division=0)
        micro = f1_score(labels, predicted, average="micro", zero_division=0)
    assert found.micro_f1 == pytest.approx(micro, abs=1e-9)
    unseen = ~labels.any(dim=0).numpy()
    assert (np.isnan(found.class_f1) == unseen).all()
    assert found.num_unseen == unseen.sum()
    assert found.class_f1[~unseen] == pytest.approx(by_class[~unseen], abs=1e-9)
    known = found.average_precision[~unseen]
    expected = known.mean() if len(known) else math.nan
    assert found.mean_average_precision == pytest.approx(expected, nan_ok=True)


def test_what_cannot_be_read_or_is_nan_is_never_predicted() -> None:
    log_probs = torch.tensor([[[-0.1, -2.0], [-2.0, -0.1]]]).repeat(3, 1, 1)
    log_probs[2, 0, 0] = math.nan
    scores = class_logits(log_probs, torch.tensor([True, False, True]))
    assert scores[0].tolist() == pytest.approx([1.9, -1.9])
    assert scores[1].tolist() == [-math.inf, -math.inf]
    assert scores[2].tolist() == [-math.inf, pytest.approx(-1.9)]
    labels = torch.tensor([[True, False], [True, False], [False, False]])
    found = ClassMetrics.of(scores, labels, threshold=0.0)
    assert found.average_precision[0] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)  # the last two tie
    assert found.false_negatives.tolist() == [1, 0]


@dataclasses.dataclass(frozen=True)
class OneOfSeveral(World):
    """A rank whose sums are completed by those of the ranks that were run before it."""

    sums: list[list[torch.Tensor]] = dataclasses.field(default_factory=list)
    calls: list[int] = dataclasses.field(default_factory=list)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        number = len(self.calls)
        self.calls.append(number)
        if number == len(self.sums):
            self.sums.append([])
        self.sums[number].append(values.clone())
        return torch.stack(self.sums[number]).sum(dim=0)


def test_ranks_gather_the_same_metrics_some_classes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(23, 5, generator=generator)
    scores[4], scores[7, 2] = -math.inf, -math.inf
    labels = torch.rand(23, 5, generator=generator) < 0.4
    found = []
    for num_ranks, num_bytes in ((1, 64 << 20), (2, 8 * 23 * 2), (4, 1)):
        monkeypatch.setattr(gathered_scores, "_GATHERED_BYTES", num_bytes)
        sums: list[list[torch.Tensor]] = []
        for rank in range(num_ranks):
            kept, ids = RankScores(5, 23), torch.arange(rank, 23, num_ranks)
            for batch in ids.split(3):
                kept.add(batch, scores[batch], labels[batch].float())
            world = OneOfSeveral(rank, rank, num_ranks, torch.device("cpu"), None, sums)  # type: ignore[arg-type]
            metrics = kept.metrics(world, 0.5)
        found.append(metrics)
    whole = ClassMetrics.of(scores, labels, 0.5)
    expected = {"val/map": 100 * whole.mean_average_precision, "val/f1": 100 * whole.micro_f1}
    assert found == [expected] * 3
