"""AlexNet, the network that won ILSVRC 2012.

A. Krizhevsky, I. Sutskever, G. Hinton: ImageNet Classification with Deep Convolutional Neural
Networks, NIPS 2012; and the code it was trained with, github.com/computerhistory/
AlexNet-Source-Code, layers/layers-145.cfg and its parameters, which is the paper's single network.

                conv1    conv2    conv3    conv4    conv5    fc6    fc7    fc8
    maps           96      256      384      384      256   4096   4096   1000
    map size    55x55    27x27    13x13    13x13    13x13
    input      image   own tower    both  own tower own tower both  both   both

Two towers of half the maps each were trained on two GPUs; here they are `groups=2` on one device.
60,965,224 parameters, 0.724 billion multiply-adds.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import check_map_size, init_normal, scale_width

Variant = Literal["printed", "trained"]


class AlexNet(nn.Module):
    """`[n, in_channels, s, s]` images, s = `image_size`, to `[n, num_classes]` logits.

    Args:
        variant: "printed" is the paper's section 3: ReLU after every layer, then the response
            normalisation. "trained" is run 145: the first and the fifth layer are rectified only
            after their pooling, and a second normalisation, over 5x5 windows of the same map,
            follows the second layer's.
        overlapping_pooling: False is run 147, with pools of 2x2 (section 3.4).
        response_norm: False is run 148 (section 3.3).
        cross_tower: False is run 150: the towers meet only in fc8. It has 2x160 maps in conv2 and
            2x4096 units in fc6, to be as large.
        width: the factor on the width of every layer; below 1 for tests.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 224,
        variant: Variant = "printed",
        overlapping_pooling: bool = True,
        response_norm: bool = True,
        cross_tower: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if variant not in ("printed", "trained"):
            raise ValueError(f"AlexNet has no variant {variant!r}. Use printed or trained.")
        self.is_printed = variant == "printed"
        maps2, units6 = (256, 4096) if cross_tower else (320, 8192)
        c1, c2, c3, c5, h6, h7 = (
            2 * scale_width(n // 2, width) for n in (96, maps2, 384, 256, units6, 4096)
        )
        towers = 1 if cross_tower else 2
        window = 3 if overlapping_pooling else 2
        self.pool = nn.MaxPool2d(window, 2)
        self.conv1 = nn.Conv2d(in_channels, c1, 11, 4)
        self.norm1 = TowerNorm() if response_norm else nn.Identity()
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=2)
        self.norm2 = TowerNorm() if response_norm else nn.Identity()
        has_map_norm = response_norm and not self.is_printed
        self.map_norm = MapNorm() if has_map_norm else nn.Identity()
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1, groups=towers)
        self.conv4 = nn.Conv2d(c3, c3, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(c3, c5, 3, padding=1, groups=2)
        # Convolutions over their whole input, so that towers are groups here as well.
        self.fc6 = nn.Conv2d(c5, h6, _last_map_size(image_size, window), groups=towers)
        self.fc7 = nn.Conv2d(h6, h7, 1, groups=towers)
        self.fc8 = nn.Linear(h7, num_classes)
        self.dropout = Dropout()
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        relu = F.relu
        x = self.conv1(_extend(x))  # [n, 96, 55, 55]
        x = self.pool(self.norm1(relu(x) if self.is_printed else x))
        x = relu(x)  # no change if rectified before
        x = self.norm2(relu(self.conv2(x)))  # [n, 256, 27, 27]
        x = self.pool(self.map_norm(x))
        x = relu(self.conv3(x))  # [n, 384, 13, 13]
        x = relu(self.conv4(x))  # [n, 384, 13, 13]
        x = relu(self.pool(self.conv5(x)))  # [n, 256, 6, 6]; commutes
        x = self.dropout(relu(self.fc6(x)))  # [n, 4096, 1, 1]
        x = self.dropout(relu(self.fc7(x)))
        logits: Tensor = self.fc8(x.flatten(1))
        return logits

    def _initialise(self) -> None:
        """Initialise as in section 5; the trained network began conv3 to conv5 with 0.03."""
        later = 0.01 if self.is_printed else 0.03
        init_normal((self.conv1, self.fc8), std=0.01)
        init_normal((self.conv3,), std=later)
        # A positive bias gives the ReLUs positive inputs from the start.
        init_normal((self.conv2, self.fc6, self.fc7), std=0.01, bias=1)
        init_normal((self.conv4, self.conv5), std=later, bias=1)


class TowerNorm(nn.Module):
    """Local response normalisation (section 3.3) inside each half of the maps.

    b = a / (2 + 1e-4 / 5 * sum of a^2 over 5 neighbouring maps) ^ 0.75. The paper prints alpha =
    1e-4 for the sum; the code divides it by the 5, as torch does.
    """

    def forward(self, x: Tensor) -> Tensor:
        towers = x.unflatten(1, (2, -1)).flatten(0, 1)  # [2 n, maps / 2, h, w]
        normed = F.local_response_norm(towers, 5, alpha=1e-4, beta=0.75, k=2.0)
        joined: Tensor = normed.unflatten(0, (-1, 2)).flatten(1, 2)
        return joined


class MapNorm(nn.Module):
    """Run 145's cnorm2: a / (1 + 1e-3 / 25 * sum of a^2 over 5x5 windows of a map) ^ 0.75."""

    def forward(self, x: Tensor) -> Tensor:
        energy = F.avg_pool2d(x.square(), 5, stride=1, padding=2)  # absent neighbours count as 0
        return x / (1 + 1e-3 * energy) ** 0.75


class Dropout(nn.Module):
    """Drop units with probability 1/2, and halve them in evaluation (section 4.2).

    The inverted form of nn.Dropout would not fit the paper's initialisation and weight decay.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True) / 2 if self.training else x / 2


def _extend(x: Tensor) -> Tensor:
    """Append zeros at the right and the bottom, so that 11x11 windows of stride 4 reach the edge.

    224 is not 11 + 4 * 54 = 227: cuda-convnet's last window, the 55th, overhung.
    """
    missing = (11 - x.shape[-1]) % 4
    return F.pad(x, (0, missing, 0, missing))


def _last_map_size(image_size: int, window: int) -> int:
    size = -(-(image_size - 11) // 4) + 1
    for _ in range(3):
        size = (size - window) // 2 + 1
    return check_map_size(size, "AlexNet", image_size=image_size, own_size=224)
