"""RandAugment of timm by its configuration strings, e.g. rand-m9-mstd0.5-inc1.

Many recipes since 2020 are written in them; torchvision's has no random magnitudes, and none beyond
its range. https://huggingface.co/docs/timm/reference/data

timm draws from the global generators of Python and NumPy: they are seeded from torch's for one
image, and restored afterwards.
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
        config: the value of timm's `--aa`.
        fill: the pixel (0..255) of uncovered borders.
    """

    def __init__(self, config: str, fill: Sequence[float]) -> None:
        super().__init__()
        from timm.data.auto_augment import rand_augment_transform  # takes seconds, in every worker

        # The interpolation of the recipes that are written in these strings.
        params = {"img_mean": tuple(map(round, fill)), "interpolation": Image.Resampling.BICUBIC}
        try:
            self._transform = rand_augment_transform(config, params)
        except (AssertionError, AttributeError, KeyError, ValueError) as error:
            raise TypeError(
                f"config={config} is not a RandAugment of timm, such as rand-m9-mstd0.5-inc1: "
                f"{error}"
            ) from error
        for op in self._transform.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Transform an image; uint8 (3, height, width)."""
        with _seeded(int(torch.randint(2**32, ()))):
            augmented = self._transform(functional.to_pil_image(image))
        pixels: torch.Tensor = functional.pil_to_tensor(augmented)
        return pixels


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep at least one bit: the highest magnitudes keep none, which Pillow 13 refuses."""
    posterized: Image.Image = functional.posterize(image, max(1, bits))
    return posterized


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
