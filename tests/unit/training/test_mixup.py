"""Images and labels are mixed alike, inside a micro-batch, by (seed, step, micro-batch) alone."""

import pytest
import torch

from orchestrator.config.recipe import Mixup
from orchestrator.training.task.mixup import MixupCutmix

NUM_CLASSES = 6


def micro_batch(num: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose pixels all are the number of their sample, each of its own class."""
    images = torch.arange(num, dtype=torch.float32).view(-1, 1, 1, 1).expand(num, 3, 16, 16)
    return images.contiguous(), torch.arange(num) % NUM_CLASSES


def mixing(mixup: float = 0.0, cutmix: float = 0.0, prob: float = 1.0) -> MixupCutmix:
    return MixupCutmix(
        Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, prob=prob), NUM_CLASSES, seed=3
    )


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_labels_are_mixed_as_the_pixels_are(alphas: dict[str, float]) -> None:
    images, labels = micro_batch()
    mix = mixing(**alphas)
    for step in range(20):
        mixed, shares = mix(images, labels, step, 0)
        assert torch.allclose(shares.sum(dim=1), torch.ones(6))
        for image, share, number in zip(mixed, shares, range(6), strict=True):
            before = (number - 1) % 6
            kept = share[labels[number]]
            expected = number * kept + before * (1 - kept)
            assert image.mean() == pytest.approx(float(expected), abs=1e-4)


def test_what_is_drawn_depends_on_step_and_micro_batch_alone() -> None:
    images, labels = micro_batch()
    mix = mixing(mixup=0.2, cutmix=1.0)
    found = {}
    for step, micro in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(step + 100)
        found[step, micro] = mix(images, labels, step, micro)[0].clone()
        torch.manual_seed(7)
        assert torch.equal(mixing(0.2, 1.0)(images, labels, step, micro)[0], found[step, micro])
    assert not torch.equal(found[0, 0], found[0, 1])
    assert not torch.equal(found[0, 0], found[1, 0])


def test_a_share_of_the_micro_batches_is_left_alone() -> None:
    images, labels = micro_batch()
    mix = mixing(cutmix=1.0, prob=0.3)
    num_mixed = sum(mix(images, labels, step, 0)[1].ndim == 2 for step in range(300))
    assert 60 < num_mixed < 120
    assert mixing()(images, labels, 0, 0) == (images, labels)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_several_labels_are_mixed_as_one_is(alphas: dict[str, float]) -> None:
    images, numbers = micro_batch()
    labels = torch.nn.functional.one_hot(numbers, NUM_CLASSES).float()
    labels[:, 0] = 1  # of all images
    mixed, shares = mixing(**alphas)(images, labels, 0, 0)
    single_images, single = mixing(**alphas)(images, numbers, 0, 0)
    assert torch.equal(mixed, single_images)
    assert torch.allclose(shares[:, 1:], single[:, 1:])
    assert torch.allclose(shares[:, 0], torch.ones(6))
