"""Evaluation protocols: which views of an image are judged. Figures compare under equal ones only.

`center-224-of-256` is the middle 224 pixels of the image resized to 256 on its shorter side;
`ten-crop-224-of-256` averages over that, the four corners, and all five mirrored (Krizhevsky et
al., ImageNet Classification with Deep Convolutional Neural Networks, 2012, section 4.1).
"""

import re
from dataclasses import dataclass, replace

from data_sharding.augment import View


@dataclass(frozen=True)
class Protocol:
    """The views of an image, each `crop` pixels square, after its shorter side became `resize`."""

    name: str
    crop: int
    resize: int
    num_views: int

    def views(self, width: int, height: int) -> tuple[View, ...]:
        """Return the views of an image of that size in pixels.

        Rounds as torchvision's Resize, CenterCrop and TenCrop do, so that figures compare with
        published ones.
        """
        shorter = min(width, height)
        resized_width, resized_height = (int(self.resize * s / shorter) for s in (width, height))
        right, bottom = resized_width - self.crop, resized_height - self.crop
        scale = (width / resized_width, height / resized_height)
        middle = self._view(round(right / 2), round(bottom / 2), width, height, scale)
        if self.num_views == 1:
            return (middle,)
        corners = [
            self._view(x, y, width, height, scale)
            for x, y in ((0, 0), (right, 0), (0, bottom), (right, bottom))
        ]
        views = (*corners, middle)
        return (*views, *(replace(view, flip=True) for view in views))

    def _view(
        self, left: int, top: int, width: int, height: int, scale: tuple[float, float]
    ) -> View:
        """Return the view at a place of the resized image; scale: source pixels in one of those."""
        x, y = scale
        right, bottom = (left + self.crop) * x, (top + self.crop) * y
        return View((left * x, top * y, min(right, width), min(bottom, height)))


def parse_protocol(name: str) -> Protocol:
    """Return the protocol of a name such as `center-224-of-256`.

    Raises:
        ValueError: the name is not of that form, or it crops more than there is.
    """
    match = re.fullmatch(r"(center|ten-crop)-([1-9][0-9]*)-of-([1-9][0-9]*)", name)
    if not match or int(match[2]) > int(match[3]):
        raise ValueError(
            f"'{name}' is not an evaluation protocol. Figures under an unknown protocol "
            "compare with nothing. Write center-CROP-of-RESIZE or ten-crop-CROP-of-RESIZE with "
            "CROP <= RESIZE, e.g. center-224-of-256."
        )
    return Protocol(name, int(match[2]), int(match[3]), 1 if match[1] == "center" else 10)
