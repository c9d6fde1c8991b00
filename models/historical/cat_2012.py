"""The network with the cat neuron: nine layers, trained on unlabelled images.

Q. Le, M. Ranzato, R. Monga, M. Devin, K. Chen, G. Corrado, J. Dean, A. Ng: Building High-level
Features Using Large Scale Unsupervised Learning, ICML 2012, arXiv 1112.6209, section 3 and its
appendix; the cost is that of reconstruction ICA: Q. Le, A. Karpenko, J. Ngiam, A. Ng: ICA with
Reconstruction Cost for Efficient Overcomplete Feature Learning, NIPS 2011.

Three stages, each of three layers: linear filters that are local and not shared between positions,
L2 pooling, local contrast normalisation. The paper gives 18x18 fields, 8 maps and pools of 5x5 for
200x200 images, and a billion weights; it does not give the strides. With 1 for the filters and 2
for the pools, as here, there are 0.75 billion. (The geometry is unverified: from memory.)
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-6  # inside the pooling's square root


class LocalRicaNet(nn.Module):
    """`[n, in_channels, s, s]` images, s = `image_size`, to the cost of each, `[n]`.

    The stages are trained together, on the sum of their costs; none sends a gradient to the one
    before. `num_classes` is not used. ValueError: the images are too small for a stage.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 200,
        field: int = 18,
        maps: int = 8,
        stages: int = 3,
        stride: int = 1,
        pool_stride: int = 2,
        sparsity: float = 0.1,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        channels, size = in_channels, image_size
        for number in range(1, stages + 1):
            if size < field + 4 * stride:
                raise ValueError(
                    f"stage {number} gets maps of {size}x{size}, too small for fields of "
                    f"{field}x{field} and pools of 5x5. Lower field or stages."
                )
            level = RicaStage(channels, size, field, maps, stride, pool_stride, sparsity)
            self.levels.append(level)
            channels, size = maps, level.size

    def forward(self, images: Tensor) -> Tensor:
        x, total = images, images.new_zeros(len(images))
        for level in self.levels:
            cost, x = level(x.detach())
            total = total + cost
        return total

    def features(self, images: Tensor) -> Tensor:
        """Compute the activities of the last stage's neurons, `[n, neurons]`."""
        x = images
        for level in self.levels:
            _, x = level(x)
        return x.flatten(1)


class RicaStage(nn.Module):
    """`[n, channels, s, s]` to the cost of each image `[n]`, and the input of the next stage."""

    def __init__(
        self,
        channels: int,
        size: int,
        field: int,
        maps: int,
        stride: int,
        pool_stride: int,
        sparsity: float,
    ) -> None:
        super().__init__()
        side = (size - field) // stride + 1
        self.field, self.stride, self.side = field, stride, side
        self.pool_stride, self.sparsity, self.maps = pool_stride, sparsity, maps
        self.size = (side - 5) // pool_stride + 1
        self.covered = field + (side - 1) * stride  # the side that the fields cover
        shape = (side * side, channels * field * field, maps)
        std = 1 / math.sqrt(shape[1])
        self.encoder = nn.Parameter(std * torch.randn(shape))  # W1: a filter a position and map
        self.decoder = nn.Parameter(self.encoder.detach().transpose(1, 2).clone())  # W2
        distance = torch.arange(5.0) - 2
        window = torch.exp(-(distance[:, None] ** 2 + distance[None] ** 2) / 2)
        self.register_buffer("window", window / window.sum(), persistent=False)
        self.window: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x[..., : self.covered, : self.covered]
        patches = F.unfold(x, self.field, stride=self.stride)  # [n, channels * field^2, positions]
        filtered = torch.einsum("ncp,pcm->npm", patches, self.encoder)
        decoded = torch.einsum("npm,pmc->ncp", filtered, self.decoder)
        # Overlapping fields add up to one reconstruction of the whole map.
        rebuilt = F.fold(decoded, self.covered, self.field, stride=self.stride)
        grid = filtered.transpose(1, 2).unflatten(2, (self.side, self.side))
        # The pool's weights are 1 and are not trained; the sum of squares is 25 means.
        energy = 25 * F.avg_pool2d(grid.square(), 5, self.pool_stride)
        pooled = (energy + _EPSILON).sqrt()  # [n, maps, size, size]
        error = (rebuilt - x).square().flatten(1).sum(1)
        cost = error + self.sparsity * pooled.flatten(1).sum(1)
        return cost, self._normalise(pooled)

    def _normalise(self, h: Tensor) -> Tensor:
        """Subtract the neighbourhood's mean and divide by its deviation, at least by 0.01.

        Both over 5x5 windows with Gaussian weights, and over all maps (K. Jarrett et al., What is
        the Best Multi-Stage Architecture for Object Recognition?, ICCV 2009, section 2).
        """
        g = h - self._blur(h)
        return g / self._blur(g.square()).sqrt().clamp(min=0.01)

    def _blur(self, h: Tensor) -> Tensor:
        kernel = self.window.to(h.dtype)[None, None]
        padded = F.pad(h.mean(1, keepdim=True), (2, 2, 2, 2), mode="replicate")
        return F.conv2d(padded, kernel)


def best_neuron(features: Tensor, is_target: Tensor) -> tuple[float, int]:
    """Return the accuracy in percent of the best neuron as a detector, and its index.

    A neuron detects above a threshold; 20 are tried, equally spaced between its least and its
    greatest activity, and the best counts (section 4.1, where 74.8 % for cats is measured so).

    Args:
        features: the activities, `[n, neurons]`.
        is_target: bool `[n]`, True for targets and False for distractors.
    """
    low, high = features.amin(0), features.amax(0)  # [neurons]
    best = torch.zeros_like(low)
    for fraction in torch.linspace(0, 1, 20).tolist():
        is_detected = features >= low + fraction * (high - low)
        accuracy = (is_detected == is_target[:, None]).float().mean(0)
        best = torch.maximum(best, accuracy)
    value, neuron = best.max(0)
    return 100 * value.item(), int(neuron)
