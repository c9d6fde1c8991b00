"""LeNet-5, the network that read cheques.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-Based Learning Applied to Document Recognition,
Proceedings of the IEEE 86(11), 1998, section II-B. Unlike the usual re-implementations it has
subsampling with a trainable coefficient and bias, C3's sparse connections, the scaled tanh after
every layer, and the digits' bitmaps as output units. For one input channel the layers C1 to F6 have
the paper's 60,000 trainable parameters.

                      C1     S2       C3     S4      C5      F6
    maps               6      6       16     16     120      84
    size           28x28  14x14    10x10    5x5     1x1     1x1
    parameters       156     12    1,516     32  48,120  10,164
    connections  122,304  5,880  151,600  2,000  48,120  10,164

Published: 0.95 % test error on MNIST, 0.8 % with distorted training images, for 28x28 digits padded
to 32x32 with the background at -0.1 and the ink at 1.175 (sections II-B, III-B).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Table I: the connections of the six S2 maps (rows) to the sixteen C3 maps (columns). It saves
# parameters and, above all, breaks the symmetry between C3's maps.
TABLE_1 = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""
C3_INPUTS = [[s2 for s2, row in enumerate(TABLE_1.split()) if row[c3] == "X"] for c3 in range(16)]

# The output units' targets, 7 wide and 12 high, ink +1 and paper -1. Drawn in the style of the
# paper's Figure 3; not verified against it pixel by pixel.
FIGURE_3 = """
.......  .......  .......  .......  .......
..###..  ...##..  .#####.  .#####.  ....##.
.##.##.  ..###..  ##...##  ##...##  ...###.
##...##  .####..  .....##  .....##  ..####.
##...##  ...##..  ....##.  .....##  .##.##.
##...##  ...##..  ...##..  ..####.  ##..##.
##...##  ...##..  ..##...  .....##  #######
##...##  ...##..  .##....  .....##  ....##.
.##.##.  ...##..  ##.....  ##...##  ....##.
..###..  .######  #######  .#####.  ....##.
.......  .......  .......  .......  .......
.......  .......  .......  .......  .......

.......  .......  .......  .......  .......
#######  ..####.  #######  .#####.  .#####.
##.....  .##....  ##...##  ##...##  ##...##
##.....  ##.....  .....##  ##...##  ##...##
######.  ######.  ....##.  ##...##  ##...##
.....##  ##...##  ....##.  .#####.  ##...##
.....##  ##...##  ...##..  ##...##  .######
.....##  ##...##  ...##..  ##...##  .....##
##...##  ##...##  ..##...  ##...##  ....##.
.#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .......
.......  .......  .......  .......  .......
"""


class LeNet5(nn.Module):
    """`[n, in_channels, 32, 32]` images to `[n, num_classes]` logits.

    `head="linear"` ends in a linear layer, for any number of classes. `head="rbf"` ends as the
    paper does, in ten Euclidean radial basis functions whose centres are fixed bitmaps of the
    digits. The logits are the negated squared distances, so cross-entropy over them is the paper's
    MAP criterion (eq. 9) but for its constant j, the recipe's `map_rejection_penalty`.

    `border=2` is for the 28x28 images of MNIST: it adds two pixels of the background, -0.1, on each
    side (section II-B).

    Weights and biases of C1, C3, C5 and F6 start uniform in +-2.4 / sqrt(fan-in). Appendix A prints
    the fan-in without the root, but says that weighted sums thereby have the same deviation in all
    units, which holds with it. With it, too, the rates of MNIST's first pass end near 0.016, as in
    section III-B; without it they end at 0.025, and the network does not learn.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        head: Literal["linear", "rbf"] = "linear",
        border: int = 0,
    ) -> None:
        super().__init__()
        self.border = border
        self.c1 = nn.Conv2d(in_channels, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = SparseConv2d()
        self.s4 = Subsampling(16)
        self.c5 = nn.Conv2d(16, 120, 5)  # a convolution, as its map would grow with the image
        self.f6 = nn.Linear(120, 84)
        for layer in (self.c1, self.c5, self.f6):
            _init_uniform(layer.weight[0].numel(), *layer.parameters())
        self.head = _make_head(head, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.forward_features(x))  # [n, num_classes]
        return logits

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the input of the head, `[n, 84]`."""
        size = 32 - 2 * self.border
        if x.shape[-2:] != (size, size):
            raise ValueError(
                f"LeNet-5 takes {size}x{size} images and got {x.shape[-2]}x{x.shape[-1]}. Set "
                f"image_size={size} of the data, or border=2 of the network for 28x28."
            )
        x = F.pad(x, (self.border,) * 4, value=-0.1)
        x = scaled_tanh(self.c1(x))  # [n, 6, 28, 28]
        x = scaled_tanh(self.s2(x))  # [n, 6, 14, 14]
        x = scaled_tanh(self.c3(x))  # [n, 16, 10, 10]
        x = scaled_tanh(self.s4(x))  # [n, 16, 5, 5]
        x = scaled_tanh(self.c5(x))  # [n, 120, 1, 1]
        return scaled_tanh(self.f6(x.flatten(1)))  # [n, 84]


def scaled_tanh(a: Tensor) -> Tensor:
    """Compute A tanh(S a), which follows every layer up to F6 (eq. 6) and maps +-1 to +-1."""
    return 1.7159 * torch.tanh(2 / 3 * a)  # appendix A


class Subsampling(nn.Module):
    """`[n, maps, 2h, 2w]` to `[n, maps, h, w]`: the sum of 2x2 inputs, scaled and shifted.

    One trainable coefficient and one bias a map. They start as an average, 1/4 and 0, which is
    inside the paper's range; a random coefficient near 0 would mute its map.
    """

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.coefficient = nn.Parameter(torch.full((maps,), 0.25))
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        total = F.avg_pool2d(x, 2, divisor_override=1)
        return total * self.coefficient[:, None, None] + self.bias[:, None, None]


class SparseConv2d(nn.Module):
    """C3, `[n, 6, h, w]` to `[n, 16, h - 4, w - 4]`: a 5x5 convolution that follows Table I.

    Only the table's sixty kernels are parameters, the paper's 1,516. They run as one dense
    convolution in which the other kernels are zero.
    """

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        places = [6 * c3 + s2 for c3, inputs in enumerate(C3_INPUTS) for s2 in inputs]
        self.kernels = nn.Parameter(torch.empty(60, 5, 5))
        self.bias = nn.Parameter(torch.empty(16))
        # Saved with the weights: a network on the meta device is complete once they are loaded.
        self.register_buffer("places", torch.tensor(places))
        with torch.no_grad():
            kernels_of_map = torch.split(self.kernels, [len(inputs) for inputs in C3_INPUTS])
            for kernels, bias in zip(kernels_of_map, self.bias, strict=True):
                _init_uniform(kernels.numel(), kernels, bias)

    def forward(self, x: Tensor) -> Tensor:
        zeros = self.kernels.new_zeros(16 * 6, 5, 5)
        weight = zeros.index_copy(0, self.places, self.kernels).view(16, 6, 5, 5)
        return F.conv2d(x, weight, self.bias)


class DigitBitmaps(nn.Module):
    """`[n, 84]` to `[n, 10]`: minus the squared distance to each digit's bitmap (eq. 7)."""

    bitmaps: Tensor

    def __init__(self) -> None:
        super().__init__()
        rows = [line.split() for line in FIGURE_3.splitlines() if line]
        digits = [
            "".join(column) for band in (rows[:12], rows[12:]) for column in zip(*band, strict=True)
        ]
        ink = [[1.0 if pixel == "#" else -1.0 for pixel in digit] for digit in digits]
        self.register_buffer("bitmaps", torch.tensor(ink))  # [10, 84]

    def forward(self, x: Tensor) -> Tensor:
        # Not as |x|^2 - 2 x.w + |w|^2: that product would run in bf16 under autocast, in which
        # distances around a hundred are imprecise.
        return -(x[:, None] - self.bitmaps).square().sum(-1)


def _make_head(head: str, num_classes: int) -> nn.Module:
    if head == "linear":
        return nn.Linear(84, num_classes)  # not the paper's, so it has PyTorch's initialisation
    if head != "rbf":
        raise ValueError(f"LeNet-5 has no head {head!r}. Use linear or rbf.")
    if num_classes != 10:
        raise ValueError(
            f"LeNet-5's rbf head has bitmaps of ten digits and not for {num_classes} classes. Set "
            "head=linear, or train on ten classes."
        )
    return DigitBitmaps()


def _init_uniform(fan_in: int, *parameters: Tensor) -> None:
    for parameter in parameters:
        nn.init.uniform_(parameter, -2.4 / math.sqrt(fan_in), 2.4 / math.sqrt(fan_in))
