"""scikit-learn's handwritten digits: a data set that needs no download."""

from functools import partial

import numpy as np

from data_sharding.sources.base import Sample, Source, encode_png, notes_on_val, stratified_split


def digits(val_fraction: float = 0.2, seed: int = 0) -> Source:
    """scikit-learn's 1,797 handwritten digits: 8x8 grey PNGs in ten classes; needs no download.

    E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998 (its test set).

    Raises:
        DataError: the fraction leaves a class without training or validation samples.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = np.rint(data.images * (255 / 16)).astype(np.uint8)  # from 0..16
    classes = tuple(str(name) for name in data.target_names)
    samples = [
        Sample(f"{n:08d}-{label}", "png", int(label), f"digit {n}", partial(encode_png, image))
        for n, (image, label) in enumerate(zip(grey, data.target, strict=True))
    ]
    in_val = stratified_split(data.target, classes, val_fraction, seed)
    train, val = ([samples[i] for i in np.flatnonzero(mask)] for mask in (~in_val, in_val))
    facts = {"kind": "digits", "val_fraction": val_fraction, "val_seed": seed}
    file_bytes = len(samples[0].read())  # of each: they are stored, not compressed
    sizes = {"train": np.full(len(train), file_bytes), "val": np.full(len(val), file_bytes)}
    notes = notes_on_val(data.target, classes, val_fraction)
    return Source(classes, {"train": train, "val": val}, facts, num_bytes=sizes, notes=notes)
