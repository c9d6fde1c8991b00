"""What is minimised. The loop calls `loss(logits, labels)` and knows no more of it."""

from torch import nn

from orchestrator.schema import Recipe


def make_objective(recipe: Recipe) -> nn.Module:
    """Return the loss: logits (n, num_classes) and labels (n,) -> the mean over samples, ()."""
    return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
