"""What several papers' networks have in common."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def init_normal(layers: Iterable[nn.Module], std: float, bias: float = 0.0) -> None:
    """Draw the weights of convolutions and linear layers from N(0, std^2); set their biases."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def scale_width(num_units: int, width: float) -> int:
    """Return how many units a layer has in a network of that width, at least one."""
    return max(1, round(width * num_units))


def max_pool_3_2(x: Tensor) -> Tensor:
    """Pool 3x3 places, every 2; the last window may hang over, as in cuda-convnet and Caffe."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)
