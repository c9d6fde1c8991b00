"""Padded crops: the augmentation of small images, a batch at a time.

An image of 32 pixels is decoded in less time than Python needs for ten calls on it, so the images
of a batch are shifted and mirrored by a single gather.
"""

from dataclasses import dataclass

import numpy as np

from data_sharding.transforms.crops import CropSpec, Randoms
from data_sharding.transforms.decode import Pixels


def whole_image(width: int, height: int) -> tuple[CropSpec]:
    """Choose the whole of an image as its only view."""
    return (CropSpec((0, 0, width, height)),)


@dataclass(frozen=True)
class PaddedCrop:
    """Shift the resized image by up to `padding` output pixels each way, padding with zeros.

    The augmentation of CIFAR since Lee et al., Deeply-Supervised Nets (2014): pad by 4, crop 32.

    Args:
        hflip_prob: the probability of a horizontal flip.
    """

    padding: int
    hflip_prob: float

    def __call__(self, width: int, height: int, randoms: Randoms) -> CropSpec:
        """Choose the crop of one image, as `cut` does for many."""
        x, y = (int(value * (2 * self.padding + 1)) - self.padding for value in randoms[20:22])
        return CropSpec((0, 0, width, height), (x, y), flip=bool(randoms[22] < self.hflip_prob))

    def cut(self, images: Pixels, randoms: Randoms, out: Pixels) -> None:
        """Cut the crops of whole images out.

        Args:
            images: (n, size, size, channels), resized.
            randoms: (n, NUM_RANDOMS).
            out: an array of the same shape.
        """
        num, size, _, channels = images.shape
        border = min(self.padding, size)  # further out all is zero
        side = size + 2 * border
        padded = np.zeros((num, side, side, channels), dtype=np.uint8)
        padded[:, border : -border or None, border : -border or None] = images
        shifts = (randoms[:, 20:22] * (2 * self.padding + 1)).astype(np.int64) - self.padding
        left, top = border + np.clip(shifts, -border, border).T[..., None]
        columns = np.arange(size)
        mirrored = np.where(randoms[:, 22:23] < self.hflip_prob, columns[::-1], columns)
        rows = (np.arange(num)[:, None] * side + top + np.arange(size)) * side
        places = rows[:, :, None] + (left + mirrored)[:, None, :]
        pixel = np.dtype((np.void, channels))
        np.take(padded.view(pixel), places, out=out.view(pixel)[..., 0], mode="clip")
