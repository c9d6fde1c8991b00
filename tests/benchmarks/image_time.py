"""Measure where the time of a photograph goes in a loader's worker.

    python tests/benchmarks/image_time.py IMAGES [--rounds 5] [--dir D]

IMAGES and D are those of loading.py; all images must be ordinary JPEGs. CPU time of one process on
one thread: whole batches as a worker makes them, then the same batches step by step with a clock
between the steps, whose pixels must be the same. Two decodings that no step makes are timed too, to
show what another decoder could gain.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data_sharding.image import jpeg
from data_sharding.loading.datasets import TrainDataset
from data_sharding.rng import derive_key, uniform
from data_sharding.sampling.sample_order import MicroBatchKey
from data_sharding.transforms.crops import NUM_RANDOMS
from tests.benchmarks.loading import DATA, make_data
from tests.benchmarks.loading_peers import BATCH_SIZE, SIZE, tahoe_dataset
from tests.benchmarks.rounds import Spread, print_machine, ratios, take_turns

STEPS = range(10)  # the batches that are timed
STAGES = (
    "find the sample, parse its label",
    "parse the header",
    "choose the crop",
    "copy the file, its height cut below the crop",
    "decode (libjpeg-turbo)",
    "copy the crop out",
    "resize, antialiased (torch)",
    "flip half of them, write to the batch",
)
NOT_MADE = {"instead: decode to the last row": "RGB", "the same, brightness alone": "GRAY"}
REST = "random numbers, order, Python between"

Pixels = NDArray[np.uint8]


def make_batch(dataset: TrainDataset, step: int, out: Pixels) -> NDArray[np.int64]:
    """Make a batch as `TrainDataset` does; return the nanoseconds of each stage."""
    draw = dataset.order.micro_batch(step, 0)
    keys = derive_key(dataset.order.seed, "augment", draw.passes, draw.ids)
    nanoseconds = np.zeros(len(STAGES), dtype=np.int64)
    for sample, randoms, image in zip(
        draw.ids.tolist(), uniform(keys, NUM_RANDOMS), out, strict=True
    ):
        clock = [time.thread_time_ns()]
        for _ in _stages(dataset, sample, randoms, image):
            clock.append(time.thread_time_ns())
        nanoseconds += np.diff(clock)
    return nanoseconds


def _stages(
    dataset: TrainDataset, sample: int, randoms: NDArray[np.float64], out: Pixels
) -> Iterator[None]:
    """Make an image, and stop after each of STAGES."""
    data = dataset.shards.decode(sample, lambda data: (data, None)).image
    yield
    header = jpeg.read_header(data)
    if header is None:
        raise SystemExit(f"sample {sample} is no ordinary JPEG, which nothing here times")
    yield
    view = dataset.crop(header.width, header.height, randoms)
    left, top, right, bottom = map(int, view.box)
    yield
    cut, height = jpeg.cut_below(data, header, math.ceil(view.box[3]))
    yield
    pixels = np.empty((height, header.width, 3), dtype=np.uint8)
    with suppress(ValueError):  # the warning about the rows that are left out
        simplejpeg.decode_jpeg(cut, "RGB", buffer=pixels)
    yield
    crop = torch.from_numpy(pixels[top:bottom, left:right]).permute(2, 0, 1)
    crop = crop[None].contiguous(memory_format=torch.channels_last)
    yield
    resized = F.interpolate(crop, (SIZE, SIZE), mode="bilinear", antialias=True)[0]
    yield
    resized = resized.flip(2) if view.flip else resized
    torch.from_numpy(out).permute(2, 0, 1).copy_(resized)
    yield


def microseconds(run: Callable[[int], object]) -> float:
    """Return the CPU time an image of making each batch."""
    start_s = time.process_time()
    for step in STEPS:
        run(step)
    return 1e6 * (time.process_time() - start_s) / (BATCH_SIZE * len(STEPS))


def decode_batch(dataset: TrainDataset, colours: str, step: int) -> None:
    """Decode the images of a batch to their last rows, and do no more."""
    for sample in dataset.order.micro_batch(step, 0).ids.tolist():
        data = dataset.shards.decode(sample, lambda data: (data, None)).image
        simplejpeg.decode_jpeg(data, colours, strict=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=DATA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    make_data(options.images, options.dir)
    dataset = tahoe_dataset(options.dir)
    shape = (BATCH_SIZE, SIZE, SIZE, 3)
    memory, out = np.zeros(math.prod(shape), dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    for step in STEPS:  # also opens the shards
        dataset.write_batch(MicroBatchKey(step, 0), memory)
        make_batch(dataset, step, out)
        assert np.array_equal(out, memory.reshape(shape)), step
    found: list[NDArray[np.float64]] = []

    def stages() -> float:
        nanoseconds = sum(make_batch(dataset, step, out) for step in STEPS)
        found.append(nanoseconds / 1e3 / (BATCH_SIZE * len(STEPS)))
        return float(found[-1].sum())

    rates = take_turns(
        {
            "whole": lambda: microseconds(
                lambda step: dataset.write_batch(MicroBatchKey(step, 0), memory)
            ),
            "stages": stages,
            **{
                name: partial(microseconds, partial(decode_batch, dataset, colours))
                for name, colours in NOT_MADE.items()
            },
        },
        options.rounds,
    )
    print_machine()
    print(f"CPU microseconds an image, {options.rounds} rounds of {len(STEPS)} batches: medians")
    rows = {name: list(column) for name, column in zip(STAGES, np.transpose(found), strict=True)}
    rows[REST] = [a - b for a, b in zip(rates["whole"], rates["stages"], strict=True)]
    rows["a whole image"] = rates["whole"]
    for name in NOT_MADE:
        rows[name] = rates[name]
    for name, values in rows.items():
        spread, percent = Spread.of(values), 100 * ratios(values, rates["whole"]).median
        bounds = f"({spread.least:.0f} to {spread.most:.0f})"
        print(f"{name:46}{spread.median:6.0f} {bounds:16}{percent:6.1f} %")


if __name__ == "__main__":
    main()
