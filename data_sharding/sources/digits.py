"""The 1,797 handwritten digits of scikit-learn: 8x8 grey PNGs in ten classes, without a download.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test set).
"""

import numpy as np

from data_sharding.sources.base import PixelImages, Source, split_off_val


def digits(val_fraction: float = 0.2, seed: int = 0) -> Source:
    """List the digits; the seed chooses those for validation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)  # from 0..16
    classes = tuple(str(name) for name in data.target_names)
    images = PixelImages.of(grey, data.target, "digit")
    splits, facts, notes = split_off_val(images, classes, val_fraction, seed)
    return Source(classes, splits, {"kind": "digits", **facts}, notes=notes)
