"""The paper's ResNet: the stride is in the first 1x1 convolution of a bottleneck.

K. He, X. Zhang, S. Ren, J. Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv
1512.03385, table 1 and section 4.1. timm's and torchvision's networks of these names have it in the
3x3 ("v1.5", after facebookarchive/fb.resnet.torch), which makes them about half a point better and
5 % more expensive; the parameters and their names in torchvision are the same.
"""

from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

_DEPTHS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
}


def resnet(*, num_classes: int, in_channels: int = 3, depth: int = 50) -> ResNet:
    """Build a ResNet: images `[n, in_channels, h, w]` to logits `[n, num_classes]`."""
    if depth not in _DEPTHS:
        known = ", ".join(map(str, _DEPTHS))
        raise ValueError(f"the paper has no ResNet of {depth} layers. Use one of {known}.")
    network = ResNet(*_DEPTHS[depth], num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    return network
