"""Whole images at several scales, against torchvision; unreadable ones are black and marked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.loading.full_images import load_full_images
from data_sharding.loading.loader import Batch
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sources.folder import folder
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.eval_protocol import DenseProtocol
from data_sharding.writing.dataset_writer import write_dataset

BROKEN = 1
SHAPES = [(20, 24), (24, 20), (16, 16), (40, 17), (33, 70), (1, 9), (16, 32), (19, 20)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return a data set of images whose bytes are told apart by their first pixel."""
    for number, (height, width) in enumerate(SHAPES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for split in ("train", "val"):
            file = tmp_path / "images" / split / f"class{number % 3}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    broken = tmp_path / "images" / "val" / f"class{BROKEN % 3}" / f"{BROKEN}.png"
    broken.write_bytes(broken.read_bytes()[:60])
    url = str(tmp_path / "set")
    write_dataset(folder(tmp_path / "images"), url, seed=0, samples_per_shard=3)
    return url


def open_val(url: str) -> SplitReader:
    manifest = read_manifest(url, "val")
    return SplitReader("val", manifest, open_store(Location(url), "val", None, manifest.rule))


def key(shards: SplitReader, sample: int) -> int:
    (place,) = shards.locate(np.array([sample]))
    name = shards.store.open(shards.manifest.shards[place.shard]).key(place.sample)
    return int(name.rpartition("-")[2])


@pytest.mark.parametrize("scales", [(16,), (16, 24, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_shape(url: str, tmp_path: Path, scales: tuple[int, ...], channels: int):
    shards = open_val(url)
    batches: list[Batch] = list(load_full_images(shards, DenseProtocol(scales), channels))
    assert len(batches) == len(SHAPES) * len(scales)
    read = [key(shards, sample) for sample in range(len(SHAPES))]
    assert sorted(read) == list(range(len(SHAPES)))
    for number, batch in enumerate(batches):
        sample, scale = number // len(scales), scales[number % len(scales)]
        name = read[sample]
        assert batch.ids.tolist() == [sample]
        assert batch.labels.tolist() == [name % 3]
        if name == BROKEN:
            assert not batch.readable.any()
            assert not batch.images.any()
            assert "cannot be decoded" in batch.bad[0]
            continue
        assert batch.readable.all()
        with Image.open(tmp_path / "images" / "val" / f"class{name % 3}" / f"{name}.png") as file:
            image = functional.pil_to_tensor(file.convert("RGB" if channels == 3 else "L"))
        expected = functional.resize(image, [scale])
        assert min(expected.shape[1:]) == scale
        assert torch.equal(batch.images, torch.stack([expected, functional.hflip(expected)]))


def test_an_error_is_raised_where_it_is_read(url: str) -> None:
    shards = open_val(url)
    (Path(url) / "val" / shards.manifest.shards[1].name).unlink()
    batches = load_full_images(shards, DenseProtocol((16,)), 3)
    for _ in range(3):
        next(batches)
    with pytest.raises(DataError, match=shards.manifest.shards[1].name):
        next(batches)


def test_nothing_is_left_running_when_nobody_asks_for_more(url: str) -> None:
    import threading

    batches = load_full_images(open_val(url), DenseProtocol((16,)), 3)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert not [one for one in threading.enumerate() if one.name.startswith("whole-images")]
