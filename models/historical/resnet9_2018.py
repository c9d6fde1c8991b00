"""ResNet-9: the small residual network that made CIFAR-10 a matter of seconds.

D. Page: How to Train Your ResNet, 2018 (myrtle.ai; github.com/davidcpage/cifar10-fast), which won
Stanford's DAWNBench on CIFAR-10: 94 % in 79 seconds on one V100.

             prep    layer1 + 2 residual    layer2    layer3 + 2 residual    pool 4x4, linear
    maps       64            128              256             512
    size    32x32          16x16              8x8             4x4

6,573,120 parameters for ten classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import scale_width


class ResNet9(nn.Module):
    """`[n, in_channels, h, w]` images to `[n, num_classes]` logits; h and w are at least 8."""

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c0, c1, c2, c3 = (scale_width(n, width) for n in (64, 128, 256, 512))
        self.prep = _conv(in_channels, c0)
        self.layer1 = nn.Sequential(_conv(c0, c1), nn.MaxPool2d(2), Residual(c1))
        self.layer2 = nn.Sequential(_conv(c1, c2), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_conv(c2, c3), nn.MaxPool2d(2), Residual(c3))
        self.linear = nn.Linear(c3, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))  # [n, 512, 4, 4]
        logits: Tensor = self.linear(F.adaptive_max_pool2d(x, 1).flatten(1))
        return 0.125 * logits  # the post's scale, which its learning rates fit


class Residual(nn.Module):
    """`[n, maps, h, w]` to the same: two convolutions plus the identity."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.first, self.second = _conv(maps, maps), _conv(maps, maps)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.second(self.first(x))
        return added


def _conv(in_maps: int, maps: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_maps, maps, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(maps), nn.ReLU(inplace=True))
