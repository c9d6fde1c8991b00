"""The view of a sample: which part of the image the network sees, and whether mirrored.

A view is a function of the image's size and of draws keyed by (seed, epoch, sample id), so the same
sample in the same epoch gets the same view in any worker, on any rank, in any attempt. Views are
plain numbers: nothing here touches pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RANDOMS = 23  # ten tries of area and ratio, a place (x, y), a flip
_CROP_TRIES = 10  # torchvision's


@dataclass(frozen=True)
class CropSpec:
    """Resize `box` of the source to the output, move it by `shift`, mirror it if `flip`.

    Args:
        box: left, top, right, bottom in source pixels, inside the image.
        shift: (x, y) in output pixels; what comes in from outside is zero.
    """

    box: tuple[float, float, float, float]
    shift: tuple[int, int] = (0, 0)
    flip: bool = False


Draws = NDArray[np.float64]  # NUM_DRAWS numbers in [0, 1)
CropFn = Callable[[int, int, Draws], CropSpec]  # (width, height, draws)


def random_resized_crop(
    width: int,
    height: int,
    draws: Draws,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip_prob: float,
) -> CropSpec:
    """Crop a random area and aspect ratio, in the distribution of torchvision's RandomResizedCrop.

    Source: torchvision.transforms.RandomResizedCrop.get_params; Szegedy et al., Going Deeper with
    Convolutions, section 6.

    Args:
        scale: the crop's area as a share of the image's, from and to.
        ratio: the crop's width over its height, from and to; drawn uniformly in the logarithm.
        flip_prob: probability of a horizontal flip.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    flip = bool(draws[22] < flip_prob)
    for area_draw, ratio_draw in draws[: 2 * _CROP_TRIES].reshape(-1, 2):
        area = width * height * _between(scale, area_draw)
        aspect = math.exp(_between(log_ratio, ratio_draw))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(draws[20] * (width - w + 1))
            top = int(draws[21] * (height - h + 1))
            return CropSpec((left, top, left + w, top + h), flip=flip)
    return CropSpec(_central_box(width, height, ratio), flip=flip)


def resize_crop(
    width: int,
    height: int,
    draws: Draws,
    *,
    crop: int,
    sides: tuple[int, int],
    central_square: bool,
    flip_prob: float,
) -> CropSpec:
    """Crop a square at a random place, once the shorter side has a length drawn from a range.

    AlexNet's (section 4.1: side 256, from the central square), VGG's (section 3.1.1: 256 to 512),
    ResNet's (section 3.4: 256 to 480).

    Args:
        crop: the square's side, after the resizing.
        sides: the shorter side's length, from and to, drawn uniformly.
        central_square: crop from the middle of the image alone.
    """
    shorter = min(width, height)
    side = sides[0] + int(draws[0] * (sides[1] - sides[0] + 1))
    box = min(shorter, shorter * crop / side)
    across, down = (shorter, shorter) if central_square else (width, height)
    left = (width - across) / 2 + draws[20] * (across - box)
    top = (height - down) / 2 + draws[21] * (down - box)
    return CropSpec((left, top, left + box, top + box), flip=bool(draws[22] < flip_prob))


def random_crop_padded(
    width: int, height: int, draws: Draws, *, padding: int, flip_prob: float
) -> CropSpec:
    """Shift the resized image by up to `padding` output pixels each way, zeros coming in.

    The augmentation of CIFAR since Lee et al., Deeply-Supervised Nets (2014): pad by 4, crop 32.
    """
    x, y = (int(draw * (2 * padding + 1)) - padding for draw in draws[20:22])
    return CropSpec((0, 0, width, height), shift=(x, y), flip=bool(draws[22] < flip_prob))


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def _central_box(
    width: int, height: int, ratio: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the largest middle box whose aspect ratio is within bounds."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        w = max(round(height * ratio[1]), 1)
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)
