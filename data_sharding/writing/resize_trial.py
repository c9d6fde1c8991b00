"""The effect of shrinking on a sample of the images, measured before all are written."""

import time
from dataclasses import dataclass

import numpy as np

from data_sharding.errors import BadSample
from data_sharding.format.location import publish_order
from data_sharding.format.shard_reader import TooLarge
from data_sharding.image.heif import known_format
from data_sharding.image.inspect import inspect_image
from data_sharding.image.resize import ResizeSettings, decode_8bit
from data_sharding.rng import permutation
from data_sharding.sources.base import Source


@dataclass(frozen=True)
class ResizeTrial:
    """The images of a trial before and after shrinking.

    Those of over 89 megapixels are left out, and counted as `num_huge`. Rates are images decoded
    per second on one thread, of all images. Differences are those that JPEG makes to the pixels
    (0..255) of shrunk images.
    """

    num_images: int
    num_shrunk: int
    bytes_before: int
    bytes_after: int
    rate_before: float
    rate_after: float
    max_difference: int
    mean_difference: float
    num_huge: int


def measure_resize(
    shrink: ResizeSettings, source: Source, seed: int, num: int = 100
) -> ResizeTrial:
    """Shrink some training images, chosen by the seed, and measure the effect."""
    before, num_huge = _sound_images(source, shrink, seed, num)
    after, differences = [], []
    for data, is_too_large in before:
        after.append(shrink.apply(data) if is_too_large else data)
        if is_too_large:
            ideal, real = (
                np.asarray(image, dtype=np.int16)
                for image in (shrink.resized(data), decode_8bit(after[-1]))
            )
            differences.append(np.abs(ideal - real))
    return ResizeTrial(
        num_images=len(before),
        num_shrunk=len(differences),
        bytes_before=sum(len(data) for data, _ in before),
        bytes_after=sum(map(len, after)),
        rate_before=_decode_rate([data for data, _ in before]),
        rate_after=_decode_rate(after),
        max_difference=max((int(d.max()) for d in differences), default=0),
        mean_difference=float(np.mean([d.mean() for d in differences] or [0])),
        num_huge=num_huge,
    )


def _sound_images(
    source: Source, shrink: ResizeSettings, seed: int, num: int
) -> tuple[list[tuple[bytes, bool]], int]:
    """Return random training images that can be decoded, each with True if it is too large.

    The number of those that are too large to be decoded for a trial comes with them.
    """
    samples = source.splits[publish_order(source.splits)[-1]]  # train, or fold 0
    images, num_huge = list[tuple[bytes, bool]](), 0
    for index in permutation(seed, "trial", len(samples))[:num].tolist():
        sample = samples[index]
        try:
            data = known_format(sample.read())
            info = inspect_image(data, sample.extension)
            decode_8bit(data)
        except TooLarge:
            num_huge += 1
        except (BadSample, OSError):  # the writing itself reports it
            continue
        else:
            images.append((data, shrink.size(info.width, info.height) is not None))
    return images, num_huge


def _decode_rate(images: list[bytes]) -> float:
    start_s = time.perf_counter()
    for data in images:
        decode_8bit(data)
    return len(images) / (time.perf_counter() - start_s)
