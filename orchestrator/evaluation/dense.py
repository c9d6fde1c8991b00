"""A network applied to whole images: its predictions at every position, averaged.

Simonyan and Zisserman, Very Deep Convolutional Networks, section 3.2, after OverFeat's section 3.3:
the first fully connected layer becomes a convolution, and the map of logits is averaged. A network
that averages its last maps, as all since Network in Network do, computes that mean as it is.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def make_dense(network: nn.Module) -> nn.Module:
    """Return a network of the same weights that takes images of any size from its own up.

    Raises:
        ValueError: its last maps are pooled to a fixed size, by layers that are not known here.
    """
    window = _fixed_pool_size(getattr(network, "avgpool", None))
    classifier = getattr(network, "classifier", None)
    if window and hasattr(network, "features") and isinstance(classifier, nn.Sequential):
        return _DenseClassifier(network.features, window, classifier)
    fixed = [name for name, layer in network.named_modules() if _fixed_pool_size(layer)]
    if fixed:
        raise ValueError(f"its layer {fixed[0]} pools maps of any size to a fixed one")
    return network


class _DenseClassifier(nn.Module):
    """A VGG or AlexNet of torchvision with its classifier at every position of the maps."""

    def __init__(self, features: Any, window: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.window, self.classifier = features, window, classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = F.unfold(self.features(x), self.window)  # [n, maps * window^2, positions]
        logits: torch.Tensor = self.classifier(windows.transpose(1, 2))  # [n, positions, classes]
        return logits.mean(dim=1)


def _fixed_pool_size(layer: Any) -> int:
    """Return the side to which a layer pools maps of any size; 0 for no such layer, and for 1."""
    if not isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return 0
    size: Any = layer.output_size
    side: int = max(n or 0 for n in (size if isinstance(size, tuple) else (size,)))
    return side if side > 1 else 0
