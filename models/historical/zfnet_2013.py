"""ZFNet: AlexNet with smaller strides, found by visualising its features.

M. Zeiler, R. Fergus: Visualizing and Understanding Convolutional Networks, ECCV 2014, arXiv
1311.2901, figure 3 and section 3. conv1 is 7x7 with stride 2 where AlexNet's is 11x11 with 4; there
are no towers, since one GPU was enough.

                conv1    conv2    conv3    conv4    conv5     fc6    fc7    fc8
    maps           96      256      384      384      256    4096   4096   1000
    map size  110x110    26x26    13x13    13x13    13x13

62,357,608 parameters, 1.168 billion multiply-adds. `wide=True` is the network of table 2 with 512,
1024 and 512 maps in conv3 to conv5.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import check_map_size, init_normal, max_pool_3_2, scale_width


class ZFNet(nn.Module):
    """`[n, in_channels, s, s]` images, s = `image_size`, to `[n, num_classes]` logits.

    "Contrast normalized across feature maps" (figure 3) is taken to be AlexNet's local response
    normalisation, as the paper begins with that network. ValueError: nothing is left of the images
    after the pools.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 224,
        wide: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        maps = (96, 256, 512, 1024, 512) if wide else (96, 256, 384, 384, 256)
        c1, c2, c3, c4, c5, hidden = (scale_width(n, width) for n in (*maps, 4096))
        self.conv1 = nn.Conv2d(in_channels, c1, 7, 2, padding=1)
        self.conv2 = nn.Conv2d(c1, c2, 5, 2)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
        size = _last_map_size(image_size)
        self.fc6 = nn.Linear(c5 * size * size, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, num_classes)
        self.dropout = nn.Dropout(0.5)
        init_normal(self.children(), std=1e-2)  # "initialized to 1e-2", biases 0

    def forward(self, x: Tensor) -> Tensor:
        pool, relu = max_pool_3_2, F.relu
        x = self.norm(pool(relu(self.conv1(x))))  # [n, 96, 55, 55]
        x = self.norm(pool(relu(self.conv2(x))))  # [n, 256, 13, 13]
        x = relu(self.conv3(x))  # [n, 384, 13, 13]
        x = relu(self.conv4(x))
        x = F.max_pool2d(relu(self.conv5(x)), 3, 2)  # [n, 256, 6, 6]
        x = self.dropout(relu(self.fc6(x.flatten(1))))  # [n, 4096]
        x = self.dropout(relu(self.fc7(x)))
        logits: Tensor = self.fc8(x)
        return logits

    @torch.no_grad()
    def after_step(self) -> None:
        """Shrink filters whose root mean square exceeds 0.1 to that (section 3.1).

        A few filters of the first layer dominate otherwise.
        """
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                rms = layer.weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
                layer.weight.mul_((0.1 / rms).clamp(max=1))


def _last_map_size(image_size: int) -> int:
    size = (image_size + 2 - 7) // 2 + 1
    size = -(-(size - 3) // 2) + 1
    size = (size - 5) // 2 + 1
    size = -(-(size - 3) // 2) + 1
    size = (size - 3) // 2 + 1
    return check_map_size(size, "ZFNet", image_size=image_size, own_size=224)
