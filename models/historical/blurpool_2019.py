"""ResNet with blur pooling: a low-pass filter before each strided convolution.

R. Zhang: Making Convolutional Networks Shift-Invariant Again, ICML 2019, arXiv 1904.11486, as in
github.com/libffcv/ffcv-imagenet: torchvision's network, with a 3x3 binomial filter before each
strided convolution but the first. The parameters are ResNet's, and so are their names but for a
`.conv`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

_MIN_MAPS = 16  # so that images are not blurred


def resnet_blurpool(*, num_classes: int, in_channels: int = 3, depth: int = 50) -> nn.Module:
    """Build a ResNet: images `[n, in_channels, h, w]` to logits."""
    network = get_model(f"resnet{depth}", weights=None, num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.Conv2d) or child.in_channels < _MIN_MAPS:
                continue
            if max(child.stride) > 1:
                setattr(parent, name, BlurredConv(child))
    return network  # type: ignore[no-any-return]  # torchvision has no types


class BlurredConv(nn.Module):
    """A convolution behind a blur."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        window = row[:, None] * row[None]
        self.register_buffer("window", window.expand(conv.in_channels, 1, 3, 3).clone())
        self.window: Tensor

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.conv2d(x, self.window.to(x.dtype), padding=1, groups=x.shape[1])
        y: Tensor = self.conv(blurred)
        return y
