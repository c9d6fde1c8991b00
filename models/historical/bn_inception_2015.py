"""BN-Inception (Inception v2), the network of the paper on batch normalisation.

S. Ioffe, C. Szegedy: Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift, ICML 2015, arXiv 1502.03167, section 4.2.1 and the table of its appendix, as
in slim/nets/inception_v2.py of the same laboratory. Against GoogLeNet: 5x5 convolutions are two of
3x3, there is a third module at 28x28, strides are inside two modules, which have no projection of
their pool, the first layer is separable with a depth multiplier of 8, and there is neither dropout
nor response normalisation.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import max_pool_3_2, scale_width

# 1x1, (1x1 before the) 3x3, (1x1 before the) two 3x3, pool, 1x1 after it. With a stride: no 1x1.
_TABLE = {
    "3a": ((64, 64, 64, 64, 96), "avg", 32),
    "3b": ((64, 64, 96, 64, 96), "avg", 64),
    "3c": ((0, 128, 160, 64, 96), "max", 0),
    "4a": ((224, 64, 96, 96, 128), "avg", 128),
    "4b": ((192, 96, 128, 96, 128), "avg", 128),
    "4c": ((160, 128, 160, 128, 160), "avg", 96),
    "4d": ((96, 128, 192, 160, 192), "avg", 96),
    "4e": ((0, 128, 192, 192, 256), "max", 0),
    "5a": ((352, 192, 320, 160, 224), "avg", 128),
    "5b": ((352, 192, 320, 192, 224), "max", 128),
}


class BNInception(nn.Module):
    """`[n, in_channels, h, w]` images to `[n, num_classes]` logits."""

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c1, c2 = scale_width(64, width), scale_width(192, width)
        c0 = in_channels * min(8, max(1, c1 // in_channels))
        depthwise = nn.Conv2d(in_channels, c0, 7, 2, 3, groups=in_channels, bias=False)
        self.conv1 = nn.Sequential(depthwise, Conv(c0, c1, 1))
        self.reduce2 = Conv(c1, c1, 1)
        self.conv2 = Conv(c1, c2, 3)
        maps = c2
        for name, (numbers, pool, pooled) in _TABLE.items():
            row = [scale_width(n, width) if n else 0 for n in (*numbers, pooled)]
            block = Inception(maps, row, pool)
            self.add_module(f"inception{name}", block)
            maps = block.num_maps
        self.fc = nn.Linear(maps, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool_3_2(self.conv1(x))  # [n, 64, 56, 56]
        x = max_pool_3_2(self.conv2(self.reduce2(x)))  # [n, 192, 28, 28]
        for name in _TABLE:
            # 3c: [n, 576, 14, 14], 4e: [n, 1024, 7, 7]
            x = self.get_submodule(f"inception{name}")(x)
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class Conv(nn.Sequential):
    """A convolution without a bias, batch normalisation in its place, ReLU (section 3.2)."""

    def __init__(self, in_maps: int, maps: int, kernel: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(in_maps, maps, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(maps, eps=1e-3), nn.ReLU(inplace=True))


class Inception(nn.Module):
    """`[n, maps, h, w]` to `[n, num_maps, h, w]`, or half the size if there is no 1x1."""

    def __init__(self, maps: int, row: Sequence[int], pool: str) -> None:
        super().__init__()
        ones, reduce3, threes, reduce_double, double, pooled = row
        self.stride = 1 if ones else 2
        self.pool_kind = pool
        self.ones = Conv(maps, ones, 1) if ones else None
        self.threes = nn.Sequential(Conv(maps, reduce3, 1), Conv(reduce3, threes, 3, self.stride))
        self.doubles = nn.Sequential(
            Conv(maps, reduce_double, 1),
            Conv(reduce_double, double, 3),
            Conv(double, double, 3, self.stride),
        )
        self.pooled = Conv(maps, pooled, 1) if pooled else nn.Identity()
        self.num_maps = ones + threes + double + (pooled or maps)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.ones(x)] if self.ones is not None else []
        branches += [self.threes(x), self.doubles(x), self.pooled(self.pool(x))]
        return torch.cat(branches, dim=1)

    def pool(self, x: Tensor) -> Tensor:
        if self.pool_kind == "max":
            return F.max_pool2d(x, 3, self.stride, padding=1)
        return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)  # TensorFlow's SAME
