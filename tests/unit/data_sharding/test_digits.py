"""The digits are scikit-learn's, and their split depends on the seed alone."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_sharding.sources.digits import digits


def test_digits_are_the_digits() -> None:
    from sklearn.datasets import load_digits

    source = digits()
    pixels, targets = load_digits(return_X_y=True)
    assert source.classes == tuple("0123456789")
    seen = []
    for split in "train", "val":
        samples = source.splits[split]
        for i in range(len(samples)):
            sample = samples[i]
            number, label = sample.key.split("-")
            image = Image.open(io.BytesIO(sample.read()))
            assert (image.format, image.mode, image.size, sample.extension) == (
                "PNG",
                "L",
                (8, 8),
                "png",
            )
            expected = [round(v * 255 / 16) for v in pixels[int(number)]]
            assert list(np.asarray(image).ravel()) == expected
            assert sample.label == int(label) == targets[int(number)]
            seen.append(int(number))
    assert sorted(seen) == list(range(1797))


@pytest.mark.parametrize("val_fraction", [0.2, 0.5, 0.013])
def test_digits_split_has_the_same_share_of_every_class(val_fraction: float) -> None:
    source = digits(val_fraction, seed=3)
    labels = {
        split: Counter(samples[i].label for i in range(len(samples)))
        for split, samples in source.splits.items()
    }
    for label, num in enumerate([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]):
        assert labels["val"][label] == round(num * val_fraction)
        assert labels["train"][label] == num - labels["val"][label]


def test_digits_split_depends_on_the_seed_alone() -> None:
    def val_keys(seed: int) -> list[str]:
        val = digits(seed=seed).splits["val"]
        return [val[i].key for i in range(len(val))]

    assert val_keys(0) == val_keys(0) != val_keys(1)
    assert len(val_keys(0)) == 359
    assert digits(seed=0).fingerprint != digits(seed=1).fingerprint
