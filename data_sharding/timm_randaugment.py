"""timm's RandAugment in its own words, e.g. rand-m9-mstd0.5-inc1.

Many recipes since 2020 are written in them, and torchvision's has no magnitudes that vary, and none
beyond its range. https://huggingface.co/docs/timm/reference/data

timm draws from Python's and from NumPy's generators, which are of the whole process: they are
seeded from torch's for one image, and are afterwards as they were.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional


class TimmRandAugment(nn.Module):
    """RandAugment (Cubuk et al., 2020) by a configuration string.

    Args:
        config: as timm's `--aa` takes it.
        fill: a pixel of 0..255, for what comes in from outside.

    Raises:
        TypeError: timm does not understand the string.
    """

    def __init__(self, config: str, fill: Sequence[float]) -> None:
        super().__init__()
        self._config, self._fill = config, tuple(round(value) for value in fill)
        self._of_size: dict[int, Callable[[Image.Image], Image.Image]] = {}
        self._for(224)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the changed image; uint8 (3, height, width) both."""
        change = self._for(min(image.shape[-2:]))
        with _seeded(int(torch.randint(2**32, ()))):
            changed = change(functional.to_pil_image(image))
        pixels: torch.Tensor = functional.pil_to_tensor(changed)
        return pixels

    def _for(self, size: int) -> Callable[[Image.Image], Image.Image]:
        """Return timm's transform for images of a size, as its transforms_factory sets it up."""
        if size not in self._of_size:
            from timm.data import auto_augment  # takes seconds, in every worker

            known: dict[str, Any] = {"translate_const": int(size * 0.45), "img_mean": self._fill}
            known["interpolation"] = Image.Resampling.BILINEAR
            try:
                transform = auto_augment.rand_augment_transform(self._config, known)
            except (AssertionError, KeyError, ValueError) as error:
                raise TypeError(
                    f"config={self._config} is none of timm's RandAugment, such as "
                    f"rand-m9-mstd0.5-inc1: {error}"
                ) from error
            for op in transform.ops:
                if op.name.startswith("Posterize"):
                    op.aug_fn = _posterize
            self._of_size[size] = transform
        return self._of_size[size]


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep at least one bit: the highest magnitudes keep none, which Pillow 13 refuses."""
    kept: Image.Image = functional.posterize(image, max(1, bits))
    return kept


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    pythons, numpys = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
