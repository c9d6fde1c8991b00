"""What making images smaller does to some of them, measured before all are written."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_sharding.errors import BadSample
from data_sharding.image.inspect import inspect_image
from data_sharding.image.resize import ResizeSettings, decode_8bit
from data_sharding.rng import permutation
from data_sharding.sources.base import Source


@dataclass(frozen=True)
class ResizeTrial:
    """What making images smaller does to some of them: bytes, time to decode them, pixels.

    Rates are of all images of the trial, in images a second on one thread. Differences are of the
    images that were made smaller, from what they are before they are encoded, of 255.
    """

    num_images: int
    num_shrunk: int
    bytes_before: int
    bytes_after: int
    rate_before: float
    rate_after: float
    max_difference: int
    mean_difference: float


def measure_resize(
    shrink: ResizeSettings, source: Source, seed: int, num: int = 100
) -> ResizeTrial:
    """Make some training images smaller, chosen by the seed, and measure what that does."""
    before = list(_some(source, shrink, seed, num))
    after, differences = [], []
    for data, is_too_large in before:
        after.append(shrink.apply(data) if is_too_large else data)
        if is_too_large:
            ideal, real = shrink.resized(data), decode_8bit(after[-1])
            difference = np.asarray(ideal, dtype=np.int16) - np.asarray(real, dtype=np.int16)
            differences.append(np.abs(difference))
    return ResizeTrial(
        num_images=len(before),
        num_shrunk=len(differences),
        bytes_before=sum(len(data) for data, _ in before),
        bytes_after=sum(map(len, after)),
        rate_before=_decode_rate([data for data, _ in before]),
        rate_after=_decode_rate(after),
        max_difference=max((int(d.max()) for d in differences), default=0),
        mean_difference=float(np.mean([d.mean() for d in differences] or [0])),
    )


def _some(
    source: Source, shrink: ResizeSettings, seed: int, num: int
) -> Iterator[tuple[bytes, bool]]:
    """Yield some training images, and whether they are too large; none that are corrupt."""
    samples = source.splits["train"]
    for number in permutation(seed, "trial", len(samples))[:num].tolist():
        sample = samples[number]
        try:
            data = sample.read()
            look = inspect_image(data, sample.extension)
            decode_8bit(data)
        except (BadSample, OSError):  # the writing itself tells
            continue
        yield data, shrink.size(look.width, look.height) is not None


def _decode_rate(images: list[bytes]) -> float:
    start_s = time.perf_counter()
    for data in images:
        decode_8bit(data)
    return len(images) / (time.perf_counter() - start_s)
