"""Measure how many small images a loading process makes ready a second, beside what others use.

    python tests/benchmarks/small_images.py [--rounds 5]

Images of 8 to 32 pixels get a padded crop and a flip, in batches of 256, in one process with one
thread and no workers. Tahoe decodes those of the first epoch, and keeps them for the second.
torchvision's have been decoded before it starts, as its CIFAR10 does; webdataset decodes the tars
that Tahoe reads. All are images of noise that is smooth enough to compress as photographs do.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from data_sharding.loading.kept_images import KeptImages
from data_sharding.loading.loader import iter_batches
from data_sharding.sampling.sample_order import MicroBatchKey
from data_sharding.sources.folder import folder
from data_sharding.transforms.padded_crop import PaddedCrop
from data_sharding.writing.dataset_writer import write_dataset
from tests.benchmarks.loading_peers import open_train_set
from tests.benchmarks.rounds import Spread, print_bar, print_machine, ratios, take_turns

NUM_IMAGES, BATCH, PADDING = 5_120, 256, 4
EXTENSIONS = {"PNG": "png", "JPEG": "jpg"}
KINDS = {  # side in pixels, channels, format
    "8x8 grey PNG": (8, 1, "PNG"),
    "28x28 grey PNG": (28, 1, "PNG"),
    "32x32 PNG": (32, 3, "PNG"),
    "32x32 JPEG": (32, 3, "JPEG"),
}
LEAST_RATE = 10_000  # samples a second


def make_images(side: int, channels: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (NUM_IMAGES, side // 4, side // 4, channels), dtype=np.uint8)
    images = (Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]) for pixels in small)
    return [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]


def write_shards(images: list[Image.Image], image_format: str, home: Path) -> str:
    """Write a data set of ten classes; return its URL."""
    for i, image in enumerate(images):
        for split in ("train", "val")[: 1 + (i < 10)]:
            file = home / "images" / split / str(i % 10) / f"{i:06d}.{EXTENSIONS[image_format]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file, image_format)
    url = str(home / "set")
    write_dataset(folder(home / "images"), url, seed=0, samples_per_shard=5000)
    return url


def torchvision_batches(images: list[Image.Image], side: int) -> DataLoader[Any]:
    """Return the batches of torchvision's way: images in memory, a transform of each."""
    view = make_view(side)
    return DataLoader(
        [*range(NUM_IMAGES)],  # type: ignore[arg-type]  # a list is a data set
        BATCH,
        shuffle=True,
        collate_fn=lambda rows: torch.stack([view(images[row]) for row in rows]),
    )


def webdataset_batches(url: str, side: int, channels: int) -> Iterable[Any]:
    """Return the batches of webdataset's way: tars in order, a buffer that shuffles."""
    tars = sorted(map(str, Path(url, "train").glob("*.tar")))
    stream = webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000)
    stream = stream.decode("pil" if channels == 3 else "pill").to_tuple("jpg;png", "cls")
    return stream.map_tuple(make_view(side), lambda label: label).batched(BATCH)


def make_view(side: int) -> v2.Compose:
    crop = v2.RandomCrop(side, PADDING)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def rate(batches: Iterable[Any]) -> float:
    """Return the samples a second of an epoch."""
    start_s = time.perf_counter()
    for _ in batches:
        pass
    return NUM_IMAGES / (time.perf_counter() - start_s)


def measure(kind: str, num_rounds: int, home: Path) -> None:
    side, channels, image_format = KINDS[kind]
    images = make_images(side, channels)
    url = write_shards(images, image_format, home)
    crop = PaddedCrop(PADDING, 0.5)
    decoded, kept = (open_train_set(url, crop, BATCH, side, channels) for _ in range(2))
    assert kept.layout is not None
    kept.kept = KeptImages(kept.layout)
    keys = [MicroBatchKey(step, 0) for step in range(NUM_IMAGES // BATCH)]
    rates = take_turns(
        {
            "tahoe": lambda: rate(iter_batches(decoded, keys, 0)),
            "tahoe, kept": lambda: rate(iter_batches(kept, keys, 0)),
            "torchvision": lambda: rate(torchvision_batches(images, side)),
            "webdataset": lambda: rate(webdataset_batches(url, side, channels)),
        },
        num_rounds + 1,
    )
    rates = {name: found[1:] for name, found in rates.items()}  # the first fills what is kept
    print_bar(kind, Spread.of(rates["tahoe"]), "samples/s", at_least=LEAST_RATE)
    for name, found in rates.items():
        times = ratios(rates["tahoe"], found)
        print(f"  {name:12} {Spread.of(found)} samples/s; decoding Tahoe is {times} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    num_rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print_machine()
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as home:
            measure(kind, num_rounds, Path(home))


if __name__ == "__main__":
    main()
