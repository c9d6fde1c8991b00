"""Mixup and CutMix inside a micro-batch, on the device, by (seed, step, micro-batch).

Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018; Yun et al., CutMix, 2019.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

from data_sharding.rng import derive_key
from orchestrator.config.recipe import Mixup
from orchestrator.training.distributed.micro_batch_group import MicroBatchGroup

_ALONE = MicroBatchGroup()


class MixupCutmix:
    """Mix every image with the one before it in the micro-batch, and their labels alike.

    Args:
        group: the ranks that have the other rows of the micro-batch, all of which must call this.
    """

    def __init__(
        self, mixup: Mixup, num_classes: int, seed: int, group: MicroBatchGroup = _ALONE
    ) -> None:
        self._seed, self._prob, self._group = seed, mixup.prob, group
        alphas = ((v2.MixUp, mixup.mixup_alpha), (v2.CutMix, mixup.cutmix_alpha))
        self._transforms: list[torch.nn.Module] = [
            transform(alpha=alpha, num_classes=num_classes) for transform, alpha in alphas if alpha
        ]

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, micro: int
    ) -> tuple[Tensor, Tensor]:
        """Return images (n, channels, height, width) and labels: (n,), or mixed (n, classes)."""
        if not self._transforms:
            return images, labels
        torch.manual_seed(int(derive_key(self._seed, "mix", step, micro)[0]))
        if torch.rand(()) >= self._prob:
            return images, labels
        transform = self._transforms[int(torch.randint(len(self._transforms), ()))]
        if not self._group.is_shared:
            mixed_images, mixed_labels = transform(images, labels)
            return mixed_images, mixed_labels
        # What it draws does not depend on the number of rows, so the other parts draw the same.
        images, labels = (
            torch.cat((self._group.row_before(rows), rows)) for rows in (images, labels)
        )
        mixed_images, mixed_labels = transform(images, labels)
        return mixed_images[1:], mixed_labels[1:]
