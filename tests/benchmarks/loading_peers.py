"""One stack at a time: load images with it and print how many a second, as a line of JSON.

    python loading_peers.py STACK DATA_DIR NUM_WORKERS

Run by loading.py, each stack in a virtual environment that has it. All do the same: a random
resized crop of 224 pixels (scale 0.08 to 1, antialiased unless the name says otherwise), a flip,
batches of 64 as bytes. One thread each; `NUM_WORKERS` processes, or threads for DALI.
"""

import io
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_sharding.loading.datasets import TrainDataset
    from data_sharding.transforms.crops import CropFn

BATCH_SIZE, SIZE = 64, 224
NUM_WARM_UP, NUM_MEASURED = 8, 40  # batches


def tahoe(data: Path, num_workers: int) -> Iterator[object]:
    """Tahoe as it trains: shuffled in lanes, ten thousand steps long."""
    from data_sharding.loading.loader import iter_batches
    from data_sharding.sampling.sample_order import MicroBatchKey

    names = [MicroBatchKey(step, 0) for step in range(10_000)]
    return (batch.images for batch in iter_batches(tahoe_dataset(data), names, num_workers))


def tahoe_dataset(data: Path) -> "TrainDataset":
    """Return the images of data/shards as Tahoe trains on them."""
    from functools import partial

    from data_sharding.transforms.crops import random_resized_crop

    view = partial(random_resized_crop, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip_prob=0.5)
    return open_train_set(str(data / "shards"), view, BATCH_SIZE, SIZE)


def open_train_set(
    url: str, crop: "CropFn", batch_size: int, size: int, channels: int = 3
) -> "TrainDataset":
    """Open a data set as Tahoe trains on it, shuffled in 32 lanes."""
    from data_sharding.format.location import Location
    from data_sharding.format.manifest import read_manifest
    from data_sharding.loading.datasets import TrainDataset
    from data_sharding.loading.split_reader import SplitReader
    from data_sharding.sampling.sample_order import SampleOrder
    from data_sharding.storage.shard_store import open_store
    from data_sharding.transforms.pixel_transforms import PixelAugment
    from data_sharding.transforms.progressive_resize import ImageSizeSchedule

    manifest = read_manifest(url, "train")
    order = SampleOrder(
        manifest.shards.num_samples,
        seed=0,
        global_batch_size=batch_size,
        num_lanes=32,
        num_micro_batches=1,
    )
    shards = SplitReader("train", manifest, open_store(Location(url), "train", None, manifest.rule))
    return TrainDataset(shards, order, crop, PixelAugment(()), ImageSizeSchedule(size), channels)


def webdataset_pil(data: Path, num_workers: int) -> Iterator[object]:
    """webdataset, Pillow and torchvision: what its documentation shows."""
    return _webdataset(data, num_workers, _pil_crop())


def webdataset_simplejpeg(data: Path, num_workers: int) -> Iterator[object]:
    """webdataset, simplejpeg and OpenCV, tuned by hand; bilinear without antialiasing."""
    import cv2
    import simplejpeg
    import torch

    def crop(data: bytes) -> torch.Tensor:
        cv2.setNumThreads(0)
        pixels = simplejpeg.decode_jpeg(data, "RGB", strict=False)
        left, top, width, height = _draw_crop(pixels.shape[1], pixels.shape[0])
        pixels = cv2.resize(pixels[top : top + height, left : left + width], (SIZE, SIZE))
        if random.random() < 0.5:
            pixels = cv2.flip(pixels, 1)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    return _webdataset(data, num_workers, crop)


def imagefolder_pil(data: Path, num_workers: int) -> Iterator[object]:
    """torchvision's ImageFolder: Pillow, files in class folders."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    crop = _pil_transform()
    folder = ImageFolder(str(data / "folder/train"), crop)
    loader = DataLoader(folder, BATCH_SIZE, shuffle=True, num_workers=num_workers, drop_last=True)
    return (images for images, _ in loader)


def mosaic(data: Path, num_workers: int) -> Iterator[object]:
    """MosaicML Streaming, torchvision's decoder and transforms."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    crop = _tensor_crop()

    class Images(StreamingDataset):
        def __getitem__(self, index: int) -> object:
            sample = super().__getitem__(index)
            return crop(sample["image"]), sample["label"]

    images = Images(local=str(data / "mds"), shuffle=True, batch_size=BATCH_SIZE)
    loader = DataLoader(images, BATCH_SIZE, num_workers=num_workers, drop_last=True)
    return (batch for batch, _ in loader)


def litdata(data: Path, num_workers: int) -> Iterator[object]:
    """litdata, torchvision's decoder and transforms."""
    import litdata as lit

    crop = _tensor_crop()

    class Images(lit.StreamingDataset):
        def __getitem__(self, index: int) -> object:
            sample = super().__getitem__(index)
            return crop(sample["image"]), sample["label"]

    images = Images(str(data / "litdata"), shuffle=True, drop_last=True)
    loader = lit.StreamingDataLoader(images, batch_size=BATCH_SIZE, num_workers=num_workers)
    return (batch for batch, _ in loader)


def dali(data: Path, num_workers: int) -> Iterator[object]:
    """NVIDIA DALI on the CPU, its fused decode and crop, antialiased."""
    import numpy as np
    from nvidia.dali import fn, pipeline_def, types

    shards = sorted(str(path) for path in (data / "shards/train").glob("*.tar"))
    indexes = [str(data / "dali" / f"{Path(path).stem}.idx") for path in shards]

    @pipeline_def(
        batch_size=BATCH_SIZE, num_threads=num_workers, device_id=None, prefetch_queue_depth=2
    )
    def pipeline() -> tuple[object, object]:
        jpegs, labels = fn.readers.webdataset(
            paths=shards,
            index_paths=indexes,
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=1000,
        )
        images = fn.decoders.image_random_crop(
            jpegs,
            device="cpu",
            output_type=types.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
        )
        images = fn.resize(
            images, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True
        )
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    made = pipeline()
    made.build()
    while True:
        yield np.array(made.run()[0].as_array())  # copied out of DALI's memory, as for torch


STACKS: dict[str, Callable[[Path, int], Iterator[object]]] = {
    stack.__name__: stack
    for stack in (
        tahoe,
        webdataset_pil,
        imagefolder_pil,
        mosaic,
        litdata,
        dali,
        webdataset_simplejpeg,
    )
}


def prepare(stack: str, data: Path) -> None:
    """Write the images of data/shards in the stack's own format, if it has one."""
    if stack == "mosaic":
        _prepare_mosaic(data)
    elif stack == "litdata":
        _prepare_litdata(data)
    elif stack == "dali":
        (data / "dali").mkdir()
        for path in sorted((data / "shards/train").glob("*.tar")):
            index = data / "dali" / f"{path.stem}.idx"
            wds2idx = Path(sys.executable).with_name("wds2idx")
            subprocess.run([str(wds2idx), str(path), str(index)], check=True)


def _prepare_mosaic(data: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(
        out=str(data / "mds"), columns={"image": "bytes", "label": "int"}, size_limit=1 << 27
    ) as writer:
        for image, label in _samples(data):
            writer.write({"image": image, "label": label})


def _prepare_litdata(data: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(data / "litdata"), chunk_bytes=1 << 27)
    for number, (image, label) in enumerate(_samples(data)):
        writer[number] = {"image": image, "label": label}
    writer.done()
    writer.merge(1)


def _samples(data: Path) -> Iterator[tuple[bytes, int]]:
    import tarfile

    for path in sorted((data / "shards/train").glob("*.tar")):
        with tarfile.open(path) as tar:
            found: dict[str, bytes] = {}
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name.rpartition(".")[2]] = file.read()
                if len(found) == 2:
                    yield found["jpg"], int(found["cls"])
                    found = {}


def _webdataset(data: Path, num_workers: int, crop: Callable[[bytes], object]) -> Iterator[object]:
    import webdataset

    shards = sorted(str(path) for path in (data / "shards/train").glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=8, empty_check=False).shuffle(1000)
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(crop, int)
    dataset = dataset.batched(BATCH_SIZE, partial=False).repeat()
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=num_workers)
    return (images for images, _ in loader)


def _pil_transform() -> Callable[[object], object]:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def _pil_crop() -> Callable[[bytes], object]:
    from PIL import Image

    transform = _pil_transform()
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def _tensor_crop() -> Callable[[bytes], object]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])

    def crop(data: bytes) -> object:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return transform(decode_jpeg(encoded, mode=ImageReadMode.RGB))

    return crop


def _draw_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw left, top, width, height as torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def main(stack: str, data: Path, num_workers: int) -> None:
    import torch

    torch.set_num_threads(1)
    batches = STACKS[stack](data, num_workers)
    for _ in islice(batches, NUM_WARM_UP):
        pass
    start_s = time.perf_counter()
    shape = [tuple(batch.shape) for batch in islice(batches, NUM_MEASURED)]  # type: ignore[attr-defined]
    elapsed_s = time.perf_counter() - start_s
    assert shape == [shape[0]] * NUM_MEASURED, shape
    print(json.dumps({"images_per_s": BATCH_SIZE * NUM_MEASURED / elapsed_s, "shape": shape[0]}))
    sys.stdout.flush()
    os._exit(0)  # no stack's tidying up is measured, and some take long


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
