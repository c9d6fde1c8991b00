"""Random crops: the part of an image that the network sees, and whether it is mirrored.

A crop is a function of the image's size and of random numbers keyed by (seed, pass, sample id), so
a sample gets the same crop in any worker, on any rank, in any attempt. Crops are plain numbers:
nothing here touches pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RANDOMS = 23  # ten tries of area and ratio, a position (x, y), a flip
_CROP_TRIES = 10  # torchvision's


@dataclass(frozen=True)
class CropSpec:
    """A box of the source that is resized to the output, shifted, and mirrored if `flip`.

    Args:
        box: left, top, right, bottom in source pixels, inside the image.
        shift: (x, y) in output pixels; the uncovered border is zero.
    """

    box: tuple[float, float, float, float]
    shift: tuple[int, int] = (0, 0)
    flip: bool = False


Randoms = NDArray[np.float64]  # NUM_RANDOMS numbers in [0, 1)
CropFn = Callable[[int, int, Randoms], CropSpec]  # (width, height, randoms)


def random_resized_crop(
    width: int,
    height: int,
    randoms: Randoms,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip_prob: float,
) -> CropSpec:
    """Crop a random area and aspect ratio, in the distribution of torchvision's RandomResizedCrop.

    Source: torchvision.transforms.RandomResizedCrop.get_params; Szegedy et al., Going Deeper with
    Convolutions, section 6.

    Args:
        scale: the range of the crop's area as a fraction of the image's.
        ratio: the range of the crop's width over its height, drawn uniformly in the logarithm.
        hflip_prob: the probability of a horizontal flip.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    flip = bool(randoms[22] < hflip_prob)
    for area_random, ratio_random in randoms[: 2 * _CROP_TRIES].reshape(-1, 2):
        area = width * height * _between(scale, area_random)
        aspect = math.exp(_between(log_ratio, ratio_random))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(randoms[20] * (width - w + 1))
            top = int(randoms[21] * (height - h + 1))
            return CropSpec((left, top, left + w, top + h), flip=flip)
    return CropSpec(_central_box(width, height, ratio), flip=flip)


def resize_crop(
    width: int,
    height: int,
    randoms: Randoms,
    *,
    crop: int,
    resize_range: tuple[int, int],
    center_square_first: bool,
    hflip_prob: float,
) -> CropSpec:
    """Resize the shorter side to a random length, and crop a square at a random position.

    AlexNet (section 4.1: side 256, from the central square), VGG (section 3.1.1: 256 to 512) and
    ResNet (section 3.4: 256 to 480) were trained with it.

    Args:
        crop: the side of the square, after the resizing.
        resize_range: the range of the shorter side's length, drawn uniformly.
        center_square_first: whether to crop from the central square alone.
    """
    shorter = min(width, height)
    side = resize_range[0] + int(randoms[0] * (resize_range[1] - resize_range[0] + 1))
    box = min(shorter, shorter * crop / side)
    across, down = (shorter, shorter) if center_square_first else (width, height)
    left = (width - across) / 2 + randoms[20] * (across - box)
    top = (height - down) / 2 + randoms[21] * (down - box)
    return CropSpec((left, top, left + box, top + box), flip=bool(randoms[22] < hflip_prob))


def _between(bounds: tuple[float, float], fraction: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * fraction


def _central_box(
    width: int, height: int, ratio: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the largest central box whose aspect ratio is within bounds."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        w = max(round(height * ratio[1]), 1)
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)
