"""Losses against torch's, metrics against counts, and networks without labels."""

import dataclasses
import math

import pytest
import torch
from plans import plan
from torch.nn import functional as F
from torch.testing import assert_close

from data_sharding.loading.loader import Batch
from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Recipe
from orchestrator.training.task.losses import make_objective

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0], [1.0, 1.5, 0.0], [0.0, 0.0, 1.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def changed(recipe: Recipe, **values: object) -> Recipe:
    return dataclasses.replace(recipe, **values)  # type: ignore[arg-type]


def batch(readable: list[bool]) -> Batch:
    return Batch(torch.empty(0), LABELS, torch.arange(4), torch.tensor(readable), [])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_auxiliary_heads_count_with_their_weight(recipe: Recipe, smoothing: float) -> None:
    objective = make_objective(changed(recipe, label_smoothing=smoothing, aux_loss_weight=0.3))

    def ce(logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, LABELS, label_smoothing=smoothing)

    others = (LOGITS.flip(1), LOGITS * 2)
    assert_close(objective.loss(LOGITS, LABELS), ce(LOGITS))
    expected = ce(LOGITS) + 0.3 * ce(others[0]) + 0.3 * ce(others[1])
    assert_close(objective.loss((LOGITS, *others), LABELS), expected)
    assert_close(
        objective.loss((LOGITS, None, others[0]), LABELS), ce(LOGITS) + 0.3 * ce(others[0])
    )


def test_map_cross_entropy_is_equation_9(recipe: Recipe) -> None:
    """From penalties; mixed labels count by their weights."""
    objective = make_objective(changed(recipe, map_rejection_penalty=1.5, label_smoothing=0.0))
    penalties = -LOGITS
    beside = torch.log(math.exp(-1.5) + torch.exp(-penalties).sum(dim=1))
    right = penalties[torch.arange(4), LABELS]
    assert_close(objective.loss(LOGITS, LABELS), (right + beside).mean())
    mixed = 0.7 * F.one_hot(LABELS, 3) + 0.3 * F.one_hot(LABELS.flip(0), 3)
    expected = ((mixed * penalties).sum(dim=1) + beside).mean()
    assert_close(objective.loss(LOGITS, mixed), expected)
    for unfit in ({"label_smoothing": 0.1}, {"loss": "bce"}):
        with pytest.raises(ConfigError) as refused:
            make_objective(changed(recipe, map_rejection_penalty=1.5, **unfit))
        assert refused.value.value == 1.5


def test_binary_cross_entropy(recipe: Recipe) -> None:
    hot = F.one_hot(LABELS, 3).float()
    plain = make_objective(changed(recipe, loss="bce", label_smoothing=0.0))
    assert_close(plain.loss(LOGITS, LABELS), F.binary_cross_entropy_with_logits(LOGITS, hot))
    mixed = 0.7 * hot + 0.3 * hot.flip(0)
    assert_close(plain.loss(LOGITS, mixed), F.binary_cross_entropy_with_logits(LOGITS, mixed))
    sharp = make_objective(
        changed(recipe, loss="bce", label_smoothing=0.0, bce_target_threshold=0.2)
    )
    both = (mixed > 0.2).float()
    assert both.sum() > 4
    assert_close(sharp.loss(LOGITS, mixed), F.binary_cross_entropy_with_logits(LOGITS, both))


def test_unreadable_images_count_as_wrong(recipe: Recipe) -> None:
    objective = make_objective(recipe)
    assert objective.metric_names == ("val/top1", "val/top5", "val/loss")
    losses = F.cross_entropy(LOGITS, LABELS, reduction="none")
    top1, top5, loss = objective.eval_metrics(LOGITS, batch([True] * 4)).tolist()
    assert (top1, top5) == (300, 400)
    assert loss == pytest.approx(losses.sum().item())
    top1, top5, loss = objective.eval_metrics(LOGITS, batch([False, True, True, True])).tolist()
    assert (top1, top5) == (200, 300)
    assert loss == pytest.approx(losses[1:].sum().item() + math.log(3))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_predictions_of_nan_count_as_wrong(recipe: Recipe, broken: float) -> None:
    """topk and argmax take NaN for the largest number, so class 0 would have been right."""
    objective, logits = make_objective(recipe), LOGITS.clone()
    logits[0, 0] = broken
    top1, top5, loss = objective.eval_metrics(logits, batch([True] * 4)).tolist()
    assert (top1, top5) == (200, 300)
    assert math.isnan(loss)
    predictions = objective.predictions(logits, batch([True] * 4))
    assert predictions is not None
    assert predictions[:, 1].tolist() == [-1, 2, 1, 2]


def test_the_loss_of_a_confident_error_is_finite_and_not_clipped(recipe: Recipe) -> None:
    """A probability that is 0 in single precision is neither infinite nor cut off."""
    logits = torch.tensor([[200.0, 0, 0], [200.0, 0, 0]])
    views = logits.repeat_interleave(2, dim=0)
    sample = Batch(
        torch.empty(0), torch.tensor([1, 0]), torch.arange(2), torch.tensor([True] * 2), []
    )
    for output in (logits, views):
        assert make_objective(recipe).eval_metrics(output, sample).tolist() == [100, 200, 200]


def test_top1_agrees_with_predictions_where_classes_tie(recipe: Recipe) -> None:
    objective, logits = make_objective(recipe), torch.zeros(4, 3)
    predictions = objective.predictions(logits, batch([True] * 4))
    assert predictions is not None
    hits = (predictions[:, 0] == predictions[:, 1]).sum().item()
    assert objective.eval_metrics(logits, batch([True] * 4))[0].item() == 100 * hits


def test_a_network_that_returns_its_cost(recipe: Recipe) -> None:
    objective = make_objective(changed(recipe, loss="model"))
    costs = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert objective.metric_names == ("val/loss",)
    assert objective.loss(costs, LABELS).item() == 3.0
    assert objective.eval_metrics(costs, batch([True] * 4)).tolist() == [12.0]
    views = costs.repeat_interleave(2)  # two views of each
    assert objective.eval_metrics(views, batch([True] * 4)).tolist() == [12.0]


SEVERAL = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])


SEVERAL_PLAN = plan(num_train=50, label_kind="multi", samples_per_class=(10, 40, 0))


def test_several_labels_are_weighted_and_smoothed_in_training_alone(recipe: Recipe) -> None:
    bce = changed(recipe, loss="bce", label_smoothing=0.0)
    plain = make_objective(bce, SEVERAL_PLAN)
    assert plain.metric_names == ("val/map", "val/f1", "val/loss")
    losses = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL, reduction="none").mean(dim=1)
    assert_close(plain.loss(LOGITS, SEVERAL), losses.mean())
    for value, weight in ((3.0, [3.0] * 3), ("auto", [4.0, 0.25, 20.0])):
        weighted = changed(bce, bce_pos_weight=value, bce_max_pos_weight=20.0)
        expected = F.binary_cross_entropy_with_logits(
            LOGITS, SEVERAL, pos_weight=torch.tensor(weight)
        )
        objective = make_objective(weighted, SEVERAL_PLAN)
        assert_close(objective.loss(LOGITS, SEVERAL), expected)
        sums = objective.eval_metrics(LOGITS, batch([True] * 4)._replace(labels=SEVERAL))
        assert sums.item() == pytest.approx(losses.sum().item())
    smooth = make_objective(changed(bce, label_smoothing=0.2), SEVERAL_PLAN)
    expected = F.binary_cross_entropy_with_logits(LOGITS, 0.8 * SEVERAL + 0.1)
    assert_close(smooth.loss((LOGITS, None), SEVERAL), expected)


def test_several_labels_are_scored_by_the_mean_probability_of_views(recipe: Recipe) -> None:
    objective = make_objective(changed(recipe, loss="bce"), SEVERAL_PLAN)
    sample = batch([True, True, True, False])._replace(labels=SEVERAL)
    views = torch.stack((LOGITS, LOGITS.flip(1)), dim=1)
    mean = views.sigmoid().mean(dim=1)
    scores = objective.scores(views.flatten(0, 1), sample)
    assert scores is not None
    assert_close(scores[:3], mean.logit()[:3])
    assert scores[3].tolist() == [-math.inf] * 3
    losses = F.binary_cross_entropy(mean, SEVERAL, reduction="none").mean(dim=1)
    found = objective.eval_metrics(views.flatten(0, 1), sample).item()
    assert found == pytest.approx(losses[:3].sum().item() + math.log(2), rel=1e-6)
    sure = objective.eval_metrics(200 * (2 * SEVERAL - 1), sample).item()  # no probability is 0
    assert sure == pytest.approx(math.log(2))
    wrong = objective.eval_metrics(-200 * (2 * SEVERAL - 1), sample).item()
    assert wrong == pytest.approx(3 * 200 + math.log(2))
