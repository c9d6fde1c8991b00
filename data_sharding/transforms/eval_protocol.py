"""Evaluation protocols: the views of an image that are evaluated.

Metrics compare under equal protocols only.

center-224-of-256            the middle 224 pixels, once the shorter side has 256
warp-224-of-256              the middle of an image that was warped to a square, as by Caffe's
                             tools and its CaffeNet
flip-224-of-256              that, and mirrored: what "test-time augmentation" often means
ten-crop-224-of-256          that, the four corners, and all five mirrored (Krizhevsky et al.,
                             2012, section 4.1)
multi-scale-224-of-256-384   the middle at each of several scales, and mirrored
144-crop-224-of-256-288-320-352    at each scale three squares; of each its corners, its middle
                             and the whole of it, and mirrored (Szegedy et al., Going Deeper
                             with Convolutions, section 7)
dense-256-384-512            the whole image at each scale, and mirrored, for a network that is
                             applied convolutionally (Simonyan and Zisserman, 2014, section 3.2)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from data_sharding.transforms.crops import CropSpec

_NAME = re.compile(
    r"(center|warp|flip|ten-crop|multi-scale|144-crop)-([1-9][0-9]*)-of-([1-9][0-9]*(?:-[1-9][0-9]*)*)",
    re.ASCII,
)
_DENSE = re.compile(r"dense((?:-[1-9][0-9]*)+)", re.ASCII)


@dataclass(frozen=True)
class DenseProtocol:
    """Whole images and their mirror images, with the shorter side resized to each of `resizes`."""

    resizes: tuple[int, ...]

    def sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """Return the (width, height) in pixels at each scale of an image of that size."""
        resized = (_Resized(width, height, resize) for resize in self.resizes)
        return [(image.width, image.height) for image in resized]


@dataclass(frozen=True)
class EvalProtocol:
    """Square views of `crop` pixels, with the shorter side resized to each of `resizes`."""

    name: str
    crop: int
    resizes: tuple[int, ...]
    kind: str = "center"

    @property
    def num_views(self) -> int:
        return len(self.views(1000, 1000))

    def views(self, width: int, height: int) -> tuple[CropSpec, ...]:
        """Return the views of an image of (width, height) pixels.

        They are rounded as by torchvision's Resize, CenterCrop and TenCrop, so that metrics
        compare with published ones.
        """
        choose = _KINDS[self.kind]
        plain = [
            view
            for resize in self.resizes
            for view in choose(_Resized(width, height, resize, self.kind == "warp"), self.crop)
        ]
        if self.kind in ("center", "warp"):
            return tuple(plain)
        return (*plain, *(replace(view, flip=True) for view in plain))


class _Resized:
    """An image whose shorter side (warped: both) was resized, and views of it in source pixels."""

    def __init__(self, width: int, height: int, resize: int, is_warped: bool = False) -> None:
        shorter = min(width, height)
        self._source = width, height
        self.resize = resize
        self.width, self.height = (int(resize * side / shorter) for side in (width, height))
        if is_warped:
            self.width = self.height = resize
        self._scale = width / self.width, height / self.height

    def view(self, left: int, top: int, side: int) -> CropSpec:
        """Return a square of the resized image as a view of the source."""
        x, y = self._scale
        width, height = self._source
        right, bottom = (left + side) * x, (top + side) * y
        return CropSpec((left * x, top * y, min(right, width), min(bottom, height)))


def _middle(image: _Resized, crop: int) -> list[CropSpec]:
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    return [image.view(left, top, crop)]


def _corners_and_middle(image: _Resized, crop: int) -> list[CropSpec]:
    right, bottom = image.width - crop, image.height - crop
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom))
    return [*(image.view(x, y, crop) for x, y in corners), *_middle(image, crop)]


def _googlenet_144_crops(image: _Resized, crop: int) -> list[CropSpec]:
    side, views = image.resize, list[CropSpec]()
    across, down = image.width - side, image.height - side
    for x, y in ((0, 0), (round(across / 2), round(down / 2)), (across, down)):
        end, middle = side - crop, round((side - crop) / 2)
        offsets = ((0, 0), (end, 0), (0, end), (end, end), (middle, middle))
        views += [image.view(x + dx, y + dy, crop) for dx, dy in offsets]
        views.append(image.view(x, y, side))
    return views


_KINDS: dict[str, Callable[[_Resized, int], list[CropSpec]]] = {
    "center": _middle,
    "warp": _middle,
    "flip": _middle,
    "ten-crop": _corners_and_middle,
    "multi-scale": _middle,
    "144-crop": _googlenet_144_crops,
}


def parse_dense(name: str) -> DenseProtocol | None:
    """Parse a name such as `dense-256-384-512`; return None for any other name."""
    match = _DENSE.fullmatch(name)
    return DenseProtocol(tuple(map(int, match[1].split("-")[1:]))) if match else None


def parse_protocol(name: str) -> EvalProtocol:
    """Parse a name such as `center-224-of-256`.

    Raises:
        ValueError: the name is not of that form, its crop exceeds the image, or it is dense.
    """
    if parse_dense(name):
        raise ValueError(
            f"'{name}' evaluates whole images, each of its own shape: only `evaluate` supports it. "
            "Name a protocol of equal crops here, e.g. center-224-of-256."
        )
    match = _NAME.fullmatch(name)
    if match:
        kind, crop, resizes = match[1], int(match[2]), tuple(map(int, match[3].split("-")))
        if crop <= min(resizes) and (len(resizes) > 1) == (kind in ("multi-scale", "144-crop")):
            return EvalProtocol(name, crop, resizes, kind)
    raise ValueError(
        f"'{name}' is not an evaluation protocol. Write center-CROP-of-RESIZE, warp-..., flip-..., "
        "ten-crop-..., or with several sizes multi-scale-CROP-of-RESIZE-RESIZE or 144-crop-..., "
        "with CROP <= RESIZE, e.g. center-224-of-256. `evaluate` also supports dense-RESIZE-RESIZE."
    )
