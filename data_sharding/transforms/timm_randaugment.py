"""timm's RandAugment in its own words, e.g. rand-m9-mstd0.5-inc1.

Many recipes since 2020 are written in them, and torchvision's has no magnitudes that vary, and none
beyond its range. https://huggingface.co/docs/timm/reference/data

timm draws from Python's and from NumPy's generators, which are of the whole process: they are
seeded from torch's for one image, and are afterwards as they were.
"""

import random
from collections.abc import Iterator, Sequence
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
        from timm.data.auto_augment import rand_augment_transform  # takes seconds, in every worker

        # What it turns or shears it interpolates as the recipes do that are written in its words.
        known = {"img_mean": tuple(map(round, fill)), "interpolation": Image.Resampling.BICUBIC}
        try:
            self._transform = rand_augment_transform(config, known)
        except (AssertionError, AttributeError, KeyError, ValueError) as error:
            raise TypeError(
                f"config={config} is none of timm's RandAugment, such as rand-m9-mstd0.5-inc1: "
                f"{error}"
            ) from error
        for op in self._transform.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the changed image; uint8 (3, height, width) both."""
        with _seeded(int(torch.randint(2**32, ()))):
            changed = self._transform(functional.to_pil_image(image))
        pixels: torch.Tensor = functional.pil_to_tensor(changed)
        return pixels


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
