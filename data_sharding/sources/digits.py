"""scikit-learn's 1,797 handwritten digits: 8x8 grey PNGs in ten classes, without a download.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test set).
"""

from functools import partial

import numpy as np

from data_sharding.sources.base import Sample, Source, encode_png, stratified_split


def digits(val_fraction: float = 0.2, seed: int = 0) -> Source:
    """List the digits; the seed chooses those for validation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)  # from 0..16
    classes = tuple(str(name) for name in data.target_names)
    samples = [
        Sample(f"{n:08d}-{label}", "png", int(label), f"digit {n}", partial(encode_png, image))
        for n, (image, label) in enumerate(zip(grey, data.target, strict=True))
    ]
    in_val, notes = stratified_split(data.target, len(samples), classes, val_fraction, seed)
    train, val = ([samples[i] for i in np.flatnonzero(mask)] for mask in (~in_val, in_val))
    facts = {"kind": "digits", "val_fraction": val_fraction, "val_seed": seed}
    file_bytes = len(samples[0].read())  # of every file, since they are not compressed
    sizes = {"train": np.full(len(train), file_bytes), "val": np.full(len(val), file_bytes)}
    return Source(classes, {"train": train, "val": val}, facts, num_bytes=sizes, notes=notes)
