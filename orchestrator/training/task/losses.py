"""What is minimised, and what is judged. The loop and the evaluation know no more of it."""

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


class Task(Protocol):
    """What a network is trained for.

    `metric_names` are the means over samples that an evaluation gives, `val/loss` among them.
    """

    metric_names: tuple[str, ...]

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        """Return the mean over the samples of a micro-batch, ().

        Args:
            output: of the network in training, for images (n, channels, size, size).
            labels: int64 (n,), or mixed (n, num_classes).
        """
        ...

    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        """Return what else is logged of a micro-batch, by name: means over its samples."""
        ...

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        """Return the sum over the samples of an evaluated batch for each of the figures."""
        ...

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        """Return label, answer and its probability, float64 (n, 3); None if there are no classes.

        The answer is -1 for an image that cannot be read, and for one answered by NaN.
        """
        ...


def make_objective(recipe: Recipe) -> Task:
    """Return the objective of a recipe.

    Raises:
        ConfigError: its options do not go together.
    """
    if recipe.optimizer.name == "sdlm" and recipe.loss != "cross_entropy":
        raise ConfigError(
            "recipe.optimizer.name=sdlm goes by the second derivatives of the "
            f"cross-entropy, and this recipe has loss={recipe.loss}. Set "
            "recipe.loss=cross_entropy, or take another optimizer."
        )
    is_plain = recipe.loss == "cross_entropy" and not recipe.label_smoothing
    if recipe.map_rejection_penalty is not None and not is_plain:
        raise ConfigError(
            f"recipe.map_rejection_penalty={recipe.map_rejection_penalty} goes into the "
            "cross-entropy of one class, "
            f"and this recipe has loss={recipe.loss} and label_smoothing="
            f"{recipe.label_smoothing}. Leave it out, or set loss=cross_entropy and "
            "label_smoothing=0."
        )
    if recipe.loss == "model":
        return ModelLossTask()
    if recipe.loss == "bce":
        return ClassificationTask(
            BinaryCrossEntropy(
                recipe.label_smoothing, target_threshold=recipe.bce_target_threshold
            ),
            recipe.aux_loss_weight,
        )
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    if recipe.map_rejection_penalty is not None:
        return ClassificationTask(
            MapCrossEntropy(recipe.map_rejection_penalty), recipe.aux_loss_weight
        )
    return ClassificationTask(cross_entropy, recipe.aux_loss_weight)


class MapCrossEntropy:
    """y_D + log(exp(-j) + sum of exp(-y_i)), where the penalties y are the negated logits.

    LeCun et al. 1998, eq. 9: the j of a class that no image is of keeps classes whose penalty is
    large already from being pushed further. The paper gives it no value.
    """

    def __init__(self, constant: float) -> None:
        self._constant = constant

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        wider = F.pad(logits, (0, 1), value=-self._constant)
        return F.cross_entropy(wider, F.pad(labels, (0, 1)) if labels.ndim > 1 else labels)


class ClassificationTask:
    """Logits (n, num_classes) against one label a sample.

    A network may give a tuple in training, of its logits and those of auxiliary heads, which count
    `aux_loss_weight` each (GoogLeNet, section 5: 0.3).
    """

    metric_names: tuple[str, ...] = ("val/top1", "val/top5", "val/loss")

    def __init__(
        self, criterion: Callable[[Tensor, Tensor], Tensor], aux_loss_weight: float
    ) -> None:
        self._criterion, self._aux_weight = criterion, aux_loss_weight

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        logits, *beside = output if isinstance(output, tuple) else (output,)
        loss = self._criterion(logits, labels)
        for one in beside:
            if one is not None:  # torchvision names heads that are not there
                loss = loss + self._aux_weight * self._criterion(one, labels)
        return loss

    @torch.no_grad()
    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        """Return the percentages of images told right; of mixed ones, their larger part counts."""
        logits = output[0] if isinstance(output, tuple) else output
        truth = labels.argmax(dim=1) if labels.ndim > 1 else labels
        hits = 100.0 * (_best(logits) == truth[:, None])
        return {"train/top1": hits[:, 0].mean(), "train/top5": hits.sum(dim=1).mean()}

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        """Return the sums of percentages and nats; see `score`."""
        return score(sample_log_probs(output, len(batch.labels)), batch.labels, batch.readable)

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        """Return label, answer and probability of each sample, float64 (n, 3)."""
        log_probs = sample_log_probs(output, len(batch.labels))
        answers = predictions(log_probs, batch.readable)
        sure = log_probs.max(dim=1).values.exp()
        return torch.stack((batch.labels.double(), answers.double(), sure.double()), dim=1)


def _best(logits: Tensor) -> Tensor:
    """Return the five likeliest classes of each sample, the likeliest first, int64 (n, 5)."""
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


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


def mean_log_probs(log_probs: Tensor, dim: int) -> Tensor:
    """Compute the logarithms of mean probabilities over a dimension."""
    return log_probs.logsumexp(dim=dim) - math.log(log_probs.shape[dim])


def predictions(log_probs: Tensor, readable: Tensor) -> Tensor:
    """Return the likeliest class of each sample, int64 (n,); -1 for an unreadable image or NaN."""
    return torch.where(_is_answer(log_probs, readable), log_probs.argmax(dim=1), -1)


def score(log_probs: Tensor, labels: Tensor, readable: Tensor) -> Tensor:
    """Sum the figures of samples: top-1 and top-5 in percent, loss in nats; float64 (3,).

    An image that cannot be read is wrong, with the loss of a uniform guess. So is an answer of NaN,
    which topk would take for the largest number; its loss stays NaN.

    Args:
        log_probs: (n, num_classes).
        labels: int64 (n,).
        readable: bool (n,).
    """
    first = predictions(log_probs, readable) == labels
    among_five = (_best(log_probs) == labels[:, None]).any(dim=1) & _is_answer(log_probs, readable)
    losses = F.nll_loss(log_probs, labels, reduction="none")
    losses = torch.where(readable, losses, math.log(log_probs.shape[1]))
    columns = (100 * first.double(), 100 * (first | among_five).double(), losses.double())
    return torch.stack([column.sum() for column in columns])


def _is_answer(log_probs: Tensor, readable: Tensor) -> Tensor:
    return readable & ~log_probs.isnan().any(dim=1)


class ModelLossTask:
    """A network without labels, whose output is the cost of each image, (n,).

    An image that cannot be read costs what the black one in its place does.
    """

    metric_names: tuple[str, ...] = ("val/loss",)

    def loss(self, output: Any, labels: Tensor) -> Tensor:
        mean: Tensor = output.mean()
        return mean

    def train_metrics(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        return {}

    def eval_metrics(self, output: Any, batch: Batch) -> Tensor:
        costs: Tensor = output.double().view(len(batch.labels), -1).mean(dim=1)
        return costs.sum()[None]

    def predictions(self, output: Any, batch: Batch) -> Tensor | None:
        return None
