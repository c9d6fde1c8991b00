"""What happens to the pixels of a training image after its crop: colours, policies, erasing.

torchvision's transforms on bytes, each drawing from torch's generator, which is seeded anew for
every sample: the same key gives the same image in any worker.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from data_sharding.transforms.timm_randaugment import TimmRandAugment

# Krizhevsky et al. (2012), section 4.1: eigenvectors (columns) and the roots of the eigenvalues of
# the RGB covariance of ImageNet's training pixels in 0..1. The paper says eigenvalues, its code
# color_stdevs: of bytes, eigenvalues would be a thousand levels. The paper gives no numbers; these
# are those of github.com/facebookarchive/fb.resnet.torch, datasets/imagenet.lua, which takes the
# eigenvalues themselves and so less than half of the noise.
_STANDARD_DEVIATIONS = torch.tensor([0.2175, 0.0188, 0.0045]).sqrt()
_EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

_POLICIES: dict[str, Callable[..., nn.Module]] = {
    "autoaugment": v2.AutoAugment,  # Cubuk et al., 2019; that of ImageNet
    "randaugment": v2.RandAugment,  # Cubuk et al., 2020
    "trivialaugment": v2.TrivialAugmentWide,  # Mueller and Hutter, 2021
    "augmix": v2.AugMix,  # Hendrycks et al., 2020
    "timm_randaugment": TimmRandAugment,
}
_OF_COLOURS = ("augmix", "timm_randaugment")


class PcaLighting(nn.Module):
    """Add a random colour to a whole image, along the principal components of natural colours.

    Args:
        std: of the components' factors, 0.1 in the paper.
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the changed image; uint8 (3, height, width) both."""
        factors = self.std * torch.randn(3) * _STANDARD_DEVIATIONS
        colour = 255 * (_EIGENVECTORS @ factors)
        return (image + colour.view(3, 1, 1)).round_().clamp_(0, 255).to(torch.uint8)


class PixelAugment:
    """A chain of transforms, each draw a function of a key."""

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        self._transforms = tuple(transforms)

    def __bool__(self) -> bool:
        return bool(self._transforms)

    def __call__(self, image: torch.Tensor, key: int) -> torch.Tensor:
        """Return the changed image; uint8 (channels, height, width) both."""
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(key)
            for transform in self._transforms:
                image = transform(image)
        return image


def make_augment(
    *,
    policy: str | None,
    policy_options: Mapping[str, Any],
    jitter: Sequence[float],
    noise_std: float,
    erase_prob: float,
    fill: Sequence[float],
) -> PixelAugment:
    """Return the chain in torchvision's order: policy, colour jitter, colour noise, erasing.

    Args:
        policy: one of _POLICIES, or None; `policy_options` are those of torchvision's class.
        jitter: of brightness, contrast, saturation and hue; zeros for none.
        noise_std: of the principal components of colour; 0 for none.
        erase_prob: probability that a rectangle is erased (Zhong et al., 2020).
        fill: what it is erased with, and what policies fill in: a pixel of 0..255.

    Raises:
        ValueError: an option that the policy does not take, or colours of an image without.
    """
    chain: list[nn.Module] = []
    pixel = [float(value) for value in fill]
    if (any(jitter) or noise_std or policy in _OF_COLOURS) and len(pixel) != 3:
        raise ValueError(
            "colour jitter, colour noise, augmix and timm_randaugment need data.channels=3"
        )
    if policy:
        try:
            chain.append(_POLICIES[policy](**{"fill": pixel, **policy_options}))
        except TypeError as error:
            raise ValueError(f"policy_options: {error}") from error
    if any(jitter):
        chain.append(v2.ColorJitter(*jitter))
    if noise_std:
        chain.append(PcaLighting(noise_std))
    if erase_prob:
        chain.append(v2.RandomErasing(erase_prob, value=pixel))
    return PixelAugment(chain)
