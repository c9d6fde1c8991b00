"""Augmentation of the pixels of a training image after its crop: policies, colours, erasing.

torchvision's transforms on bytes draw from torch's generator, which is seeded for every sample: the
same key gives the same image in any worker.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from data_sharding.transforms.timm_randaugment import TimmRandAugment

# Krizhevsky et al. (2012), section 4.1: eigenvectors (columns) and the roots of the eigenvalues of
# the RGB covariance of ImageNet's training pixels in 0..1. The paper says eigenvalues, its code
# color_stdevs: for bytes, eigenvalues would be a thousand levels. The paper gives no numbers; these
# are from github.com/facebookarchive/fb.resnet.torch, datasets/imagenet.lua, which uses the
# eigenvalues themselves and so less than half of the noise.
_STANDARD_DEVIATIONS = torch.tensor([0.2175, 0.0188, 0.0045]).sqrt()
_EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

_POLICIES: dict[str, Callable[..., nn.Module]] = {
    "autoaugment": v2.AutoAugment,  # Cubuk et al., 2019; the policy for ImageNet
    "randaugment": v2.RandAugment,  # Cubuk et al., 2020
    "trivialaugment": v2.TrivialAugmentWide,  # Mueller and Hutter, 2021
    "augmix": v2.AugMix,  # Hendrycks et al., 2020
    "timm_randaugment": TimmRandAugment,
}
_COLOUR_POLICIES = ("augmix", "timm_randaugment")


class PcaLighting(nn.Module):
    """Add a random colour to a whole image, along the principal components of natural colours.

    Args:
        std: the standard deviation of the components' factors, 0.1 in the paper.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Transform an image; uint8 (3, height, width)."""
        factors = self.std * torch.randn(3) * _STANDARD_DEVIATIONS
        colour = 255 * (_EIGENVECTORS @ factors)
        return (image + colour.view(3, 1, 1)).round_().clamp_(0, 255).to(torch.uint8)


class PixelAugment:
    """A chain of transforms, seeded by a key."""

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        self._transforms = tuple(transforms)

    def __bool__(self) -> bool:
        return bool(self._transforms)

    def __call__(self, image: torch.Tensor, key: int) -> torch.Tensor:
        """Transform an image; uint8 (channels, height, width)."""
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(key)
            for transform in self._transforms:
                image = transform(image)
        return image


def make_augment(
    *,
    auto_augment: str | None,
    auto_augment_kwargs: Mapping[str, Any],
    color_jitter: Sequence[float],
    pca_lighting_std: float,
    random_erasing_prob: float,
    fill: Sequence[float],
) -> PixelAugment:
    """Build the chain in torchvision's order: policy, colour jitter, PCA lighting, erasing.

    Args:
        auto_augment: a name in _POLICIES, or None.
        auto_augment_kwargs: the arguments of the policy's class.
        color_jitter: the strength of brightness, contrast, saturation and hue; zeros for none.
        pca_lighting_std: the standard deviation of PCA lighting; 0 for none.
        random_erasing_prob: the probability that a rectangle is erased (Zhong et al., 2020).
        fill: the pixel (0..255) of erased rectangles and of borders that policies uncover.

    Raises:
        ValueError: the policy has no such argument, or grey images have no colours to change.
    """
    chain: list[nn.Module] = []
    pixel = [float(value) for value in fill]
    needs_colour = any(color_jitter) or pca_lighting_std or auto_augment in _COLOUR_POLICIES
    if needs_colour and len(pixel) != 3:
        raise ValueError(
            "colour jitter, PCA lighting, augmix and timm_randaugment need RGB: in_channels=3"
        )
    if auto_augment:
        try:
            chain.append(_POLICIES[auto_augment](**{"fill": pixel, **auto_augment_kwargs}))
        except TypeError as error:
            raise ValueError(f"options of {auto_augment}: {error}") from error
    if any(color_jitter):
        chain.append(v2.ColorJitter(*color_jitter))
    if pca_lighting_std:
        chain.append(PcaLighting(pca_lighting_std))
    if random_erasing_prob:
        chain.append(v2.RandomErasing(random_erasing_prob, value=pixel))
    return PixelAugment(chain)
