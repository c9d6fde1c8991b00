"""OverFeat: one network that classifies, localises and detects, by sliding over larger images.

P. Sermanet, D. Eigen, X. Zhang, M. Mathieu, R. Fergus, Y. LeCun: OverFeat: Integrated Recognition,
Localization and Detection using Convolutional Networks, ICLR 2014, arXiv 1312.6229, tables 1 and 3.

    fast, 231x231       96 11x11/4 - pool 2/2 - 256 5x5 - pool 2/2 - 512 - 1024 - 1024 - pool 2/2 -
                        3072 - 4096 - classes; 145,920,872 parameters, 2.801 billion multiply-adds
    accurate, 221x221   96 7x7/2 - pool 3/3 - 256 7x7 - pool 2/2 - 512 - 512 - 1024 - 1024 -
                        pool 3/3 - 4096 - 4096 - classes; 144,656,488 and 5.355 billion

Convolutions without a size are 3x3 with zeros around. There is no response normalisation, and the
pools do not overlap. The fully connected layers are convolutions (section 3.5): a larger image
gives a map of logits, over which they are averaged here.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import check_map_size, init_normal, scale_width

# (kernel, stride, padding, maps), or the size of a pool.
_LAYERS: dict[str, tuple[int | tuple[int, int, int, int], ...]] = {
    "fast": ((11, 4, 0, 96), 2, (5, 1, 0, 256), 2, *[(3, 1, 1, n) for n in (512, 1024, 1024)], 2),
    "accurate": (
        *((7, 2, 0, 96), 3, (7, 1, 0, 256), 2),
        *[(3, 1, 1, n) for n in (512, 512, 1024, 1024)],
        3,
    ),
}
_HIDDEN = {"fast": (3072, 4096), "accurate": (4096, 4096)}
_SIZE = {"fast": 231, "accurate": 221}


class OverFeat(nn.Module):
    """`[n, in_channels, s, s]` images to `[n, num_classes]` logits.

    Args:
        image_size: the size that the classifier's window fits; None is the paper's 231 or 221.
            Images may be larger.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        variant: Literal["fast", "accurate"] = "fast",
        image_size: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if variant not in _LAYERS:
            raise ValueError(f"OverFeat has no variant {variant!r}. Use fast or accurate.")
        size = image_size or _SIZE[variant]
        maps, layers = in_channels, list[nn.Module]()
        for layer in _LAYERS[variant]:
            if isinstance(layer, int):
                layers.append(nn.MaxPool2d(layer))
                size //= layer
            else:
                kernel, stride, padding, number = layer
                number = scale_width(number, width)
                layers += [nn.Conv2d(maps, number, kernel, stride, padding), nn.ReLU()]
                maps, size = number, (size + 2 * padding - kernel) // stride + 1
        own = _SIZE[variant]
        check_map_size(size, "OverFeat", image_size=image_size or own, own_size=own)
        self.features = nn.Sequential(*layers)
        first, second = (scale_width(n, width) for n in _HIDDEN[variant])
        self.classifier = nn.Sequential(
            *(nn.Conv2d(maps, first, size), nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(first, second, 1), nn.ReLU(), nn.Dropout(0.5)),
            nn.Conv2d(second, num_classes, 1),
        )
        init_normal(self.modules(), std=1e-2)  # section 3.2

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # [n, 1024, 6, 6] of fast, [n, 1024, 5, 5] of accurate
        x = self.classifier(x)  # [n, num_classes, 1, 1], or more of larger images
        logits: Tensor = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return logits
