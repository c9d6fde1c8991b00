"""GoogLeNet, the winner of ILSVRC 2014, without the changes of later versions.

C. Szegedy et al.: Going Deeper with Convolutions, CVPR 2015, arXiv 1409.4842, table 1; checked
against Caffe's definition. torchvision's `googlenet` has batch normalisation in place of the
response normalisation, and 3x3 in place of 5x5.

6,998,552 parameters, 1.583 billion multiply-adds; with both auxiliary heads 13,378,280 parameters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import max_pool_3_2, scale_width

# Table 1: 1x1, (1x1 before the) 3x3, (1x1 before the) 5x5, 1x1 after the pool.
_TABLE_1 = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """`[n, in_channels, s, s]` images to `[n, num_classes]` logits.

    In training, with `aux`, it returns a tuple: the logits, and those of the two auxiliary heads,
    whose losses count 0.3 each (section 5). ValueError: the images are too small for these heads.
    """

    aux_weight = 0.3

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        aux: bool = True,
        image_size: int = 224,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        c1, c2 = scale_width(64, width), scale_width(192, width)
        self.conv1 = nn.Conv2d(in_channels, c1, 7, 2, padding=3)
        self.reduce2 = nn.Conv2d(c1, c1, 1)
        self.conv2 = nn.Conv2d(c1, c2, 3, padding=1)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        maps, maps_of = c2, dict[str, int]()
        for name, row in _TABLE_1.items():
            block = Inception(maps, *(scale_width(n, width) for n in row))
            self.add_module(f"inception{name}", block)
            maps = maps_of[name] = block.num_maps
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(maps, num_classes)
        # Table 1's maps of 14x14 end in pools of 5x5 with stride 3: 4x4.
        size = (math.ceil(image_size / 16) - 5) // 3 + 1
        if aux and size < 1:
            raise ValueError(
                f"{image_size}x{image_size} images are too small for GoogLeNet's auxiliary heads. "
                "Set aux to false, or use larger images."
            )
        heads = [Auxiliary(maps_of[name], size, num_classes, width) for name in ("4a", "4d")]
        self.aux = nn.ModuleList(heads if aux else [])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # Caffe's; the paper names none
                if module.bias is not None:
                    nn.init.constant_(module.bias, 0.2 if isinstance(module, nn.Conv2d) else 0.0)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.norm(max_pool_3_2(F.relu(self.conv1(x))))  # [n, 64, 56, 56]
        x = F.relu(self.conv2(F.relu(self.reduce2(x))))
        x = max_pool_3_2(self.norm(x))  # [n, 192, 28, 28]
        aux_logits = list[Tensor]()
        for name in _TABLE_1:
            x = self.get_submodule(f"inception{name}")(x)  # [n, 480, 28, 28] ... [n, 1024, 7, 7]
            if name in ("4a", "4d") and self.aux and self.training:
                aux_logits.append(self.aux[len(aux_logits)](x))
            if name in ("3b", "4e"):
                x = max_pool_3_2(x)
        logits: Tensor = self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))
        return (logits, *aux_logits) if aux_logits else logits


class Inception(nn.Module):
    """`[n, maps, h, w]` to `[n, num_maps, h, w]`: four parallel branches (figure 2b)."""

    def __init__(self, maps: int, *row: int) -> None:
        super().__init__()
        ones, reduce3, threes, reduce5, fives, pooled = row
        self.ones = nn.Conv2d(maps, ones, 1)
        self.reduce3, self.threes = nn.Conv2d(maps, reduce3, 1), nn.Conv2d(reduce3, threes, 3, 1, 1)
        self.reduce5, self.fives = nn.Conv2d(maps, reduce5, 1), nn.Conv2d(reduce5, fives, 5, 1, 2)
        self.pooled = nn.Conv2d(maps, pooled, 1)
        self.num_maps = ones + threes + fives + pooled

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.ones(x),
            self.threes(F.relu(self.reduce3(x))),
            self.fives(F.relu(self.reduce5(x))),
            self.pooled(F.max_pool2d(x, 3, 1, padding=1)),
        )
        return F.relu(torch.cat(branches, dim=1))


class Auxiliary(nn.Module):
    """A small classifier on intermediate maps, for their gradient; unused after training."""

    def __init__(self, in_maps: int, size: int, num_classes: int, width: float) -> None:
        super().__init__()
        maps, hidden = scale_width(128, width), scale_width(1024, width)
        self.conv = nn.Conv2d(in_maps, maps, 1)
        self.fc1 = nn.Linear(maps * size * size, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.avg_pool2d(x, 5, 3)))  # [n, 128, 4, 4]
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc2(x)
        return logits
