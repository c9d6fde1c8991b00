"""Losses, and the metrics of a network's outputs; the loop and the evaluation know no more."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from data_sharding.loading.loader import Batch
from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import Recipe
from orchestrator.metrics import MULTI_LABEL_METRICS, SINGLE_LABEL_METRICS
from orchestrator.run.plan import Plan
from orchestrator.training.task.class_metrics import class_logits

Criterion = Callable[[Tensor, Tensor], Tensor]  # of logits and labels


class Task(Protocol):
    """The objective of a training and the metrics of its evaluations.

    `metric_names` are those of an evaluation, `val/loss` among them; `mean_names` are those of them
    that are means over its samples. The others need the scores of all samples.
    """

    metric_names: tuple[str, ...]
    mean_names: tuple[str, ...]

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        """Compute the mean loss of a micro-batch, ().

        Args:
            output: the network's output in training for images (n, channels, size, size).
            labels: int64 (n,), or mixed or several (n, num_classes).
        """
        ...

    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        """Compute further metrics of a micro-batch, means over its samples."""
        ...

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        """Sum each mean over the samples of an evaluated batch, (len(mean_names),)."""
        ...

    def scores(self, output: Any, batch: Batch) -> Tensor | None:
        """Return the scores of an evaluated batch, float32 (n, classes); None if none are needed.

        They are logits; -inf where a class is never predicted.
        """
        ...

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        """Return label, prediction and its probability, float64 (n, 3); None without classes.

        The prediction is -1 for an unreadable image and for an output of NaN.
        """
        ...


def make_objective(
    recipe: Recipe, plan: Plan | None = None, device: torch.device | None = None
) -> Task:
    """Build the task of a recipe.

    Args:
        plan: the plan, which knows the labels; None stands for one label an image.
        device: the device of the losses that are weighted.

    Raises:
        ConfigError: its options do not go together.
    """
    loss, smoothing, penalty = recipe.loss, recipe.label_smoothing, recipe.map_rejection_penalty
    if recipe.optimizer.name == "sdlm" and loss != "cross_entropy":
        raise ConfigError(
            "recipe.optimizer.name=sdlm uses the second derivatives of the cross-entropy, and "
            f"this recipe has recipe.loss={loss}",
            value=loss,
            hint="Set recipe.loss=cross_entropy, or take another optimizer.",
        )
    if penalty is not None and (loss != "cross_entropy" or smoothing):
        raise ConfigError(
            f"recipe.map_rejection_penalty={penalty} is for a plain cross-entropy, and this "
            f"recipe has loss={loss} and label_smoothing={smoothing}",
            value=penalty,
            hint="Leave it out, or set recipe.loss=cross_entropy and recipe.label_smoothing=0.",
        )
    if loss == "model":
        return ModelLossTask()
    criterion: Criterion
    if loss == "bce":
        threshold, weight = recipe.bce_target_threshold, positive_weight(recipe, plan)
        bce = BinaryCrossEntropy(smoothing, target_threshold=threshold, pos_weight=weight)
        criterion = bce.to(device)
        if plan and plan.label_kind == "multi":
            return MultiLabelTask(criterion, recipe.aux_loss_weight, smoothing)
    elif penalty is not None:
        criterion = MapCrossEntropy(penalty)
    else:
        criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    return ClassificationTask(criterion, recipe.aux_loss_weight)


def positive_weight(recipe: Recipe, plan: Plan | None) -> Tensor | None:
    """Return the weight of positive labels, (), or of each class, (classes,); None for 1."""
    if recipe.bce_pos_weight != "auto":
        return None if recipe.bce_pos_weight is None else torch.tensor(recipe.bce_pos_weight)
    if plan is None:  # the recipe is checked by itself
        return None
    assert plan.samples_per_class is not None  # or there is no such plan: run.label_checks
    positives = torch.tensor(plan.samples_per_class, dtype=torch.float64)
    ratio = (plan.num_train - positives) / positives  # infinite where there are none
    return ratio.clamp(max=recipe.bce_max_pos_weight).float()


class MapCrossEntropy:
    """Compute y_D + log(exp(-j) + sum of exp(-y_i)), where the penalties y are negated logits.

    LeCun et al. 1998, eq. 9: the j of a class that no image belongs to keeps classes with large
    penalties from being pushed further. The paper gives it no value.
    """

    def __init__(self, rejection_penalty: float) -> None:
        self._rejection_penalty = rejection_penalty

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        wider = F.pad(logits, (0, 1), value=-self._rejection_penalty)
        return F.cross_entropy(wider, F.pad(labels, (0, 1)) if labels.ndim > 1 else labels)


class _LogitsTask:
    """Logits (n, num_classes) against labels.

    In training a network may return a tuple: its logits, and those of auxiliary heads, each of
    which counts `aux_loss_weight` (GoogLeNet, section 5: 0.3).
    """

    def __init__(self, criterion: Criterion, aux_loss_weight: float) -> None:
        self._criterion, self._aux_weight = criterion, aux_loss_weight

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        logits, *aux_logits = output if isinstance(output, tuple) else (output,)
        loss = self._criterion(logits, labels)
        for aux in aux_logits:
            if aux is not None:  # torchvision returns None for heads that are switched off
                loss = loss + self._aux_weight * self._criterion(aux, labels)
        return loss


class ClassificationTask(_LogitsTask):
    """Logits against one label a sample."""

    metric_names: tuple[str, ...] = SINGLE_LABEL_METRICS
    mean_names: tuple[str, ...] = SINGLE_LABEL_METRICS

    @torch.no_grad()
    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        """Compute top-1 and top-5 in percent; the label of a mixed image is its larger part."""
        logits = output[0] if isinstance(output, tuple) else output
        truth = labels.argmax(dim=1) if labels.ndim > 1 else labels
        hits = 100.0 * (_top5(logits) == truth[:, None])
        return {"train/top1": hits[:, 0].mean(), "train/top5": hits.sum(dim=1).mean()}

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        log_probs = sample_log_probs(output, len(batch.labels))
        return sum_metrics(log_probs, batch.labels, batch.readable)

    def scores(self, output: Any, batch: Batch) -> Tensor | None:
        return None

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        log_probs = sample_log_probs(output, len(batch.labels))
        predicted = predict(log_probs, batch.readable)
        probs = log_probs.max(dim=1).values.exp()
        return torch.stack((batch.labels.double(), predicted.double(), probs.double()), dim=1)


class MultiLabelTask(_LogitsTask):
    """Logits against any number of labels a sample: each class is a yes or no of its own.

    Smoothing moves each label towards 0.5. Weights of positive labels are for training alone, so
    that `val/loss` compares between runs.
    """

    metric_names: tuple[str, ...] = MULTI_LABEL_METRICS
    mean_names: tuple[str, ...] = ("val/loss",)

    def __init__(self, criterion: Criterion, aux_loss_weight: float, smoothing: float) -> None:
        super().__init__(criterion, aux_loss_weight)
        self._smoothing = smoothing

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        if self._smoothing:
            labels = labels * (1 - self._smoothing) + self._smoothing / 2
        return super().loss(output, labels)

    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        return {}

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        log_probs = binary_log_probs(output, len(batch.labels))
        return binary_losses(log_probs, batch.labels, batch.readable).sum()[None]

    def scores(self, output: Any, batch: Batch) -> Tensor | None:
        return class_logits(binary_log_probs(output, len(batch.labels)), batch.readable)

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        return None


class ModelLossTask:
    """A network without labels, whose output is the cost of each image, (n,).

    An unreadable image costs what the black one in its place does.
    """

    metric_names: tuple[str, ...] = ("val/loss",)
    mean_names = metric_names

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        mean: Tensor = output.mean()
        return mean

    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        return {}

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        costs: Tensor = output.double().view(len(batch.labels), -1).mean(dim=1)
        return costs.sum()[None]

    def scores(self, output: Any, batch: Batch) -> Tensor | None:
        return None

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        return None


def sample_log_probs(logits: Tensor, num_samples: int) -> Tensor:
    """Compute the log-probabilities of samples from the logits of their views.

    Logarithms throughout: a probability that is 0 in single precision would be an infinite loss.

    Args:
        logits: (num_samples * num_views, num_classes), the views of a sample together.

    Returns:
        float32 (num_samples, num_classes), the logarithms of the views' mean probabilities; NaN in
        the whole row of a sample with a logit that is NaN or infinite.
    """
    views = logits.float().log_softmax(dim=1).view(num_samples, -1, logits.shape[1])
    return mean_log_probs(views, dim=1)


def binary_log_probs(logits: Tensor, num_samples: int) -> Tensor:
    """Compute the log-probabilities that samples show each class and that they do not.

    Args:
        logits: (num_samples * num_views, num_classes), the views of a sample together.

    Returns:
        float32 (num_samples, num_classes, 2), the logarithms of the views' mean probabilities.
    """
    both = torch.stack((logits, -logits), dim=-1).float()
    return mean_log_probs(F.logsigmoid(both).view(num_samples, -1, *both.shape[1:]), dim=1)


def binary_losses(log_probs: Tensor, labels: Tensor, readable: Tensor) -> Tensor:
    """Compute the binary cross-entropy of each sample, the mean over classes; float64 (n,).

    Args:
        log_probs: (n, num_classes, 2), as `binary_log_probs` returns them.
        labels: (n, num_classes), 0 or 1.
        readable: bool (n,); other images have the loss of a uniform guess.
    """
    shown, absent = log_probs.unbind(dim=-1)
    losses = -torch.where(labels > 0, shown, absent).double().mean(dim=1)
    return torch.where(readable, losses, math.log(2))


def mean_log_probs(log_probs: Tensor, dim: int) -> Tensor:
    """Compute the logarithms of mean probabilities over a dimension."""
    return log_probs.logsumexp(dim=dim) - math.log(log_probs.shape[dim])


def predict(log_probs: Tensor, readable: Tensor) -> Tensor:
    """Return the most likely classes, int64 (n,); -1 for an unreadable image or NaN."""
    return torch.where(_is_valid(log_probs, readable), log_probs.argmax(dim=1), -1)


def sum_metrics(log_probs: Tensor, labels: Tensor, readable: Tensor) -> Tensor:
    """Sum the metrics SINGLE_LABEL_METRICS over samples; float64 (3,).

    An unreadable image is wrong, with the loss of a uniform guess. So is a prediction of NaN, which
    topk would take for the largest number; its loss stays NaN.

    Args:
        log_probs: (n, num_classes).
        labels: int64 (n,).
        readable: bool (n,).
    """
    top1 = predict(log_probs, readable) == labels
    top5 = (_top5(log_probs) == labels[:, None]).any(dim=1) & _is_valid(log_probs, readable)
    losses = F.nll_loss(log_probs, labels, reduction="none")
    losses = torch.where(readable, losses, math.log(log_probs.shape[1]))
    columns = (100 * top1.double(), 100 * (top1 | top5).double(), losses.double())
    return torch.stack([column.sum() for column in columns])


def _top5(logits: Tensor) -> Tensor:
    """Return the five most likely classes, the most likely first, int64 (n, 5)."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


def _is_valid(log_probs: Tensor, readable: Tensor) -> Tensor:
    return readable & ~log_probs.isnan().any(dim=1)
