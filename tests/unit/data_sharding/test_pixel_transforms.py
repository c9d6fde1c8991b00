"""Augmentations change pixels, stay bytes, and are functions of their key."""

import random

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from data_sharding.transforms.pixel_transforms import PcaLighting, make_augment


def timm(policy):
    return {"auto_augment": "timm_randaugment", "auto_augment_kwargs": {"config": policy}}


NONE = {
    "auto_augment": None,
    "auto_augment_kwargs": {},
    "color_jitter": (0.0, 0.0, 0.0, 0.0),
    "pca_lighting_std": 0.0,
    "random_erasing_prob": 0.0,
    "fill": (124, 116, 104),
}
KINDS = [
    {"auto_augment": "randaugment", "auto_augment_kwargs": {"num_ops": 2, "magnitude": 9}},
    {"auto_augment": "trivialaugment"},
    {"auto_augment": "augmix"},
    {"auto_augment": "autoaugment"},
    timm("rand-m9-mstd0.5-inc1"),
    timm("rand-m15-n2-p1-mmax15"),
    {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    {"pca_lighting_std": 0.1},
    {"random_erasing_prob": 1.0},
]


def image(size=32):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    return pixels.permute(2, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_key_gives_the_same_image(kind):
    augment = make_augment(**{**NONE, **kind})
    before, state = image(), torch.random.get_rng_state()
    pythons, numpys = random.getstate(), np.random.get_state()[1].tolist()
    augmented = [augment(before, key) for key in (*range(20), *range(20))]
    assert all(torch.equal(a, b) for a, b in zip(augmented[:20], augmented[20:], strict=True))
    assert len({bytes(one.contiguous().numpy()) for one in augmented[:20]}) > 10
    assert torch.equal(before, image())
    assert torch.equal(state, torch.random.get_rng_state())
    assert random.getstate() == pythons
    assert np.random.get_state()[1].tolist() == numpys
    assert {(one.dtype, one.shape) for one in augmented} == {(torch.uint8, (3, 32, 32))}


def test_timms_policy_is_what_its_recipes_have():
    """As timm's own training script builds it, with its generators seeded alike."""
    options = {"config": "rand-m9-mstd0.5-inc1"}
    ours = make_augment(
        **{**NONE, "auto_augment": "timm_randaugment", "auto_augment_kwargs": options}
    )
    chain = create_transform(
        64, is_training=True, auto_augment=options["config"], interpolation="bicubic"
    )
    (theirs,) = (one for one in chain.transforms if type(one).__name__ == "RandAugment")
    for key in range(50):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(key)
            seed = int(torch.randint(2**32, ()))
        random.seed(seed)
        np.random.seed(seed)
        expected = pil_to_tensor(theirs(to_pil_image(image(64))))
        assert torch.equal(ours(image(64), key), expected)


def test_the_strongest_posterizing_leaves_one_bit():
    """timm asks Pillow for none, which Pillow 13 refuses: one image in a thousand."""
    options = {"config": "rand-m10-n1-p1-inc1"}
    strong = make_augment(
        **{**NONE, "auto_augment": "timm_randaugment", "auto_augment_kwargs": options}
    )
    levels = [set(strong(image(), key).flatten().tolist()) for key in range(100)]
    assert {0, 128} in levels


def test_no_transforms_are_no_change():
    assert not make_augment(**NONE)


def test_erasing_fills_with_the_given_pixel():
    erased = make_augment(**{**NONE, "random_erasing_prob": 1.0})(image(), 3)
    changed = (erased != image()).any(dim=0)
    assert 0.02 < changed.float().mean() < 0.5
    assert {tuple(pixel.tolist()) for pixel in erased[:, changed].T} == {(124, 116, 104)}


def test_colour_noise_has_the_covariance_of_natural_colours():
    """Of the first component some 12 levels, as in AlexNet's code, which has color_stdevs."""
    torch.manual_seed(0)
    noise = PcaLighting(std=0.1)
    grey = torch.full((3, 1, 1), 128, dtype=torch.uint8)
    shifts = torch.stack([noise(grey).float().flatten() - 128 for _ in range(4000)]) / 255
    std = torch.linalg.eigvalsh(torch.cov(shifts.T)).clamp_min(0).sqrt()
    assert torch.allclose(std.flip(0)[:1], torch.tensor([0.1 * 0.2175**0.5]), rtol=0.05)
    assert 255 * std.max() == pytest.approx(11.9, rel=0.05)
    assert shifts.mean(dim=0).abs().max() < 0.002


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"auto_augment": "randaugment", "auto_augment_kwargs": {"strength": 3}}, "strength"),
        (timm("rand-x9"), "config=rand-x9"),
        ({"auto_augment": "timm_randaugment", "auto_augment_kwargs": {}}, "config"),
        (timm(9), "config=9"),
        ({"auto_augment": "timm_randaugment", "fill": (124,)}, "channels=3"),
        ({"color_jitter": (0.1, 0, 0, 0), "fill": (124,)}, "channels=3"),
        ({"pca_lighting_std": 0.1, "fill": (124,)}, "channels=3"),
    ],
)
def test_invalid_options_are_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        make_augment(**{**NONE, **kind})
