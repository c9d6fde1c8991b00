"""A listed source survives a file, and nothing else is built from one."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import by_webdataset, jpeg
from image_folders import make
from safetensors.numpy import save_file

from data_sharding import sources
from data_sharding.errors import DataError
from data_sharding.format.sample_rule import SampleRule
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.base import ImageTable, Labels, ListedImages, PixelImages, Sample, Source
from data_sharding.sources.csv_file import Columns, csv_file
from data_sharding.sources.folder import FolderOptions, folder
from data_sharding.sources.imagenet import ArchivedImages
from data_sharding.sources.packed_strings import PackedStrings
from data_sharding.sources.shards import from_webdataset
from data_sharding.sources.stored_source import STORED_CLASSES, read_source, write_source


def of_a_folder(root: Path) -> Source:
    make(root, "train/ä/1.jpg", "train/ä/x.py", "train/b/2.jpg", "val/b/3.jpeg", "val/.x")
    (root / "train" / "b" / "n\udcfft.jpg").write_bytes(b"not UTF-8")
    (root / "train" / "b" / "link.jpg").symlink_to("../ä/1.jpg")
    return folder(root, options=FolderOptions(max_passed_over=1))


def of_a_table(root: Path) -> Source:
    make(root, "1.jpg", "2.jpg", "3.jpg")
    (root / "list.csv").write_text("path,label\n1.jpg,a|b\n2.jpg,b\n3.jpg,a\n")
    return csv_file(root / "list.csv", Columns(separator="|"), val_fraction=0.4)


def of_an_archive(root: Path) -> Source:
    (root / "a.tar").write_bytes(b"0123456789")
    images = ArchivedImages(
        root / "a.tar",
        PackedStrings(["x", "y"]),
        np.array([0, 4]),
        labels=Labels(np.array([0, 1])),
        file_bytes=np.array([4, 6]),
        indices=np.arange(2),
    )
    return Source(("a", "b"), {"train": images, "val": images}, {"kind": "archive"})


def of_shards(root: Path) -> Source:
    members = {str(i): {"jpg": jpeg(i), "cls": str(i % 2).encode()} for i in range(8)}
    shard = by_webdataset(root / "a.tar", members)
    reading = ReadOptions(root, 1, lambda done: None)
    return from_webdataset([str(shard)], SampleRule(image="jpg;png"), reading, val_fraction=0.25)


def of_pixels(root: Path) -> Source:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    images = PixelImages.of(pixels, np.array([0, 1]), "digit")
    return Source(("a", "b"), {"train": images, "val": images}, {"kind": "pixels"})


@pytest.mark.parametrize(
    "make_source",
    [of_a_folder, of_a_table, of_an_archive, of_shards, of_pixels],
    ids=["folder", "csv", "archive", "shards", "pixels"],
)
def test_a_stored_source_is_the_same(make_source: Callable[[Path], Source], tmp_path: Path) -> None:
    source = make_source(tmp_path)
    write_source(source, tmp_path / "source")
    read = read_source(tmp_path / "source")
    assert replace(read, splits={}) == replace(source, splits={})
    assert [*read.splits] == [*source.splits]
    assert read.fingerprint == source.fingerprint
    for split, samples in source.splits.items():
        assert all_of(read, split) == all_of(source, split)
        assert len(samples) > 0
        assert np.array_equal(read.num_bytes[split], source.num_bytes[split])
    assert read.skipped.counts["of no kind"] == 0  # it is a Counter still


def test_tables_that_the_splits_share_are_stored_once(tmp_path: Path) -> None:
    make(tmp_path, *(f"photos/{name}/{number}.jpg" for name in "ab" for number in range(4)))
    write_source(folder(tmp_path / "photos", val_fraction=0.5), tmp_path / "source")
    train, val = read_source(tmp_path / "source").splits.values()
    assert isinstance(train, ListedImages)
    assert isinstance(val, ListedImages)
    assert train.paths is val.paths
    assert train.file_bytes is val.file_bytes


def test_the_samples_of_every_source_can_be_stored() -> None:
    for module in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        importlib.import_module(module.name)
    assert {table.__name__ for table in ImageTable.__subclasses__()} <= STORED_CLASSES.keys()


def all_of(source: Source, split: str) -> list[tuple[object, ...]]:
    samples = source.splits[split]
    return [facts(samples[i], source) for i in range(len(samples))]


def facts(sample: Sample, source: Source) -> tuple[object, ...]:
    return sample.key, sample.extension, sample.label, source.name(sample), sample.read()


@pytest.mark.parametrize("tree", ['{"kind": "os.system", "items": ["x"]}', "[]", "{", "1"])
def test_nothing_else_is_built(tree: str, tmp_path: Path) -> None:
    save_file({}, tmp_path / "source", metadata={"source": tree})
    with pytest.raises(DataError) as caught:
        read_source(tmp_path / "source")
    assert caught.value.value == tmp_path / "source"


@pytest.mark.parametrize("data", [None, b"", b"no safetensors"])
def test_a_damaged_file_is_named(data: bytes | None, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / "source").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_source(tmp_path / "source")
    assert caught.value.value == tmp_path / "source"
