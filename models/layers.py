"""Layers and helpers that several papers' networks share."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def init_normal(layers: Iterable[nn.Module], std: float, bias: float = 0.0) -> None:
    """Initialise convolutions and linear layers: weights from N(0, std^2), constant biases."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def scale_width(num_units: int, width: float) -> int:
    """Scale the number of a layer's units or maps, to at least one."""
    return max(1, round(width * num_units))


def max_pool_3_2(x: Tensor) -> Tensor:
    """Pool 3x3 windows with stride 2; the last may overhang, as in cuda-convnet and Caffe."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def check_map_size(map_size: int, network: str, *, image_size: int, own_size: int) -> int:
    """Return the size of a network's last map; ValueError if nothing is left of the image."""
    if map_size < 1:
        raise ValueError(
            f"{network} leaves nothing of {image_size}x{image_size} images; its own are "
            f"{own_size}x{own_size}. Use larger images, and set image_size to their size."
        )
    return map_size
