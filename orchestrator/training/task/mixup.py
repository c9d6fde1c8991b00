"""Mixup and CutMix inside a micro-batch, on the device, drawn by (seed, step, micro-batch).

Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018; Yun et al., CutMix, 2019.
"""

from collections.abc import Sequence

import torch
from torchvision.transforms import v2

from data_sharding.rng import derive_key
from orchestrator.config.recipe import Mixup


class MixupCutmix:
    """Mixes every image with its neighbour in the micro-batch, and their labels alike."""

    def __init__(self, mix: Mixup, num_classes: int, seed: int) -> None:
        self._seed, self._prob = seed, mix.prob
        self._ways: Sequence[torch.nn.Module] = [
            way(alpha=alpha, num_classes=num_classes)
            for way, alpha in ((v2.MixUp, mix.mixup_alpha), (v2.CutMix, mix.cutmix_alpha))
            if alpha
        ]

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, step: int, micro: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images (n, channels, height, width) and labels: (n,), or mixed (n, classes)."""
        if not self._ways:
            return images, labels
        torch.manual_seed(int(derive_key(self._seed, "mix", step, micro)[0]))
        if torch.rand(()) >= self._prob:
            return images, labels
        way = self._ways[int(torch.randint(len(self._ways), ()))]
        mixed_images, mixed_labels = way(images, labels)
        return mixed_images, mixed_labels
