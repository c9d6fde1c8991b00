"""Network in Network: 1x1 convolutions after each larger one, and global average pooling.

M. Lin, Q. Chen, S. Yan: Network In Network, ICLR 2014, arXiv 1312.4400. The paper trains on CIFAR,
SVHN and MNIST; this is the authors' network for ImageNet, from their Caffe definition.

              conv1 + 2 1x1    conv2 + 2 1x1    conv3 + 2 1x1    conv4 + 2 1x1
    maps           96               256              384         1024, 1024, classes
    map size    54x54             27x27            13x13              6x6

7,595,176 parameters, 1.100 billion multiply-adds.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import init_normal, max_pool_3_2, scale_width


class NetworkInNetwork(nn.Module):
    """`[n, in_channels, h, w]` images to `[n, num_classes]` logits."""

    def __init__(self, *, num_classes: int, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, c4 = (scale_width(n, width) for n in (96, 256, 384, 1024))
        # Deviations of 0.01 in some layers and of 0.05 in the others, as in the definition.
        self.block1 = nn.Sequential(*_mlp_conv(in_channels, (c1, c1, c1), 11, 4, 0, std=0.01))
        self.block2 = nn.Sequential(*_mlp_conv(c1, (c2, c2, c2), 5, 1, 2, std=0.05))
        self.block3 = nn.Sequential(*_mlp_conv(c2, (c3, c3, c3), 3, 1, 1, std=0.01))
        self.block4 = nn.Sequential(*_mlp_conv(c3, (c4, c4, num_classes), 3, 1, 1, std=0.05))
        init_normal([self.block4[-2]], std=0.01)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool_3_2(self.block1(x))  # [n, 96, 27, 27]
        x = max_pool_3_2(self.block2(x))  # [n, 256, 13, 13]
        x = self.dropout(max_pool_3_2(self.block3(x)))  # [n, 384, 6, 6]
        x = self.block4(x)  # [n, num_classes, 6, 6]: a map for each class, rectified like all
        logits: Tensor = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return logits


def _mlp_conv(
    in_maps: int, maps: tuple[int, int, int], kernel: int, stride: int, padding: int, std: float
) -> list[nn.Module]:
    """Build a convolution and two of 1x1: a small network applied to each patch (section 3.1)."""
    first, second, third = maps
    layers = [
        nn.Conv2d(in_maps, first, kernel, stride, padding),
        nn.Conv2d(first, second, 1),
        nn.Conv2d(second, third, 1),
    ]
    init_normal(layers, std=0.05)
    init_normal(layers[:1], std=std)
    return [module for layer in layers for module in (layer, nn.ReLU())]
