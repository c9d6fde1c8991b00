"""The statistics of a data set are those that plain numpy and Pillow give for its images."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import bomb, by_webdataset, encoded, index, jpeg, labelled, photo, png
from PIL import Image

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.scanning.scan import ReadOptions
from data_sharding.tools.stats import Stats, measure


def stats(root: Path, num_measured: int = 2000, num_workers: int = 1) -> Stats:
    index(root)
    manifest = read_manifest(str(root), "train")
    options = ReadOptions(num_workers=num_workers)
    return measure(str(root), "train", manifest, options, num_measured=num_measured)


def test_classes_sizes_and_kinds(tmp_path: Path) -> None:
    sizes = [(20, 10), (30, 10), (40, 50), (100, 10)]
    labels = [0, 0, 0, 3]
    samples = {
        str(i): {"jpg": encoded(photo(i, size)), "cls": str(label).encode()}
        for i, (size, label) in enumerate(zip(sizes, labels, strict=True))
    }
    samples["p"] = {"jpg": png(4, "L"), "cls": b"1"}
    samples["c"] = {"jpg": jpeg(5, "CMYK"), "cls": b"1"}
    by_webdataset(tmp_path / "train/a.tar", samples)
    found = stats(tmp_path)
    assert found.samples_per_class.tolist() == [3, 2, 0, 1]
    assert found.widths == tuple(np.percentile([20, 30, 40, 100, 24, 24], (1, 50, 99)))
    assert found.heights == tuple(np.percentile([10, 10, 50, 10, 16, 16], (1, 50, 99)))
    assert found.formats == {"JPEG": 5, "PNG": 1}
    assert found.modes == {"RGB": 4, "L": 1, "CMYK": 1}
    assert (found.num_shards, found.num_samples, found.num_unreadable) == (1, 6, 0)
    assert found.first_labels.tolist() == [0, 0, 0, 3, 1, 1]
    assert found.num_bytes == (tmp_path / "train/a.tar").stat().st_size
    assert len(found.mean) == 3


def test_mean_and_std_are_those_of_the_pixels(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled(range(6)))
    by_webdataset(tmp_path / "train/b.tar", labelled(range(6), first=10))
    decoded = [Image.open(BytesIO(jpeg(i))) for i in (*range(6), *range(10, 16))]
    pixels = np.stack([np.asarray(image) for image in decoded]).reshape(-1, 3) / 255
    found = stats(tmp_path)
    assert found.num_measured == 12
    assert found.mean == pytest.approx(pixels.mean(0))
    assert found.std == pytest.approx(pixels.std(0))


def test_every_image_counts_the_same(tmp_path: Path) -> None:
    white, black = Image.new("RGB", (100, 100), "white"), Image.new("RGB", (10, 10))
    samples = {
        str(i): {"png": encoded(image, "png"), "cls": b"0"}
        for i, image in enumerate((white, black))
    }
    by_webdataset(tmp_path / "train/a.tar", samples)
    assert stats(tmp_path).mean == pytest.approx((0.5,) * 3)


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    samples = {
        "8 bits": {"png": png(1, "L"), "cls": b"0"},
        "16 bits": {"png": encoded(deep, "png"), "cls": b"0"},
    }
    by_webdataset(tmp_path / "train/a.tar", samples)
    found = stats(tmp_path)
    grey = np.asarray(photo(1).convert("L")).mean() / 255
    assert found.mean == pytest.approx(((grey + 128 / 255) / 2,))


def test_measured_images_do_not_depend_on_num_workers(tmp_path: Path) -> None:
    for number in range(4):
        by_webdataset(tmp_path / f"train/{number}.tar", labelled([0] * 25, first=25 * number))
    one, two = (stats(tmp_path, num_measured=30, num_workers=num) for num in (1, 2))
    assert one.num_measured == 30
    assert (one.mean, one.std) == (two.mean, two.std)
    assert one.mean != stats(tmp_path).mean


def test_measured_images_are_chosen_from_all_shards(tmp_path: Path) -> None:
    for number, colour in enumerate(("white", "black")):
        image = encoded(Image.new("RGB", (4, 4), colour), "png")
        samples = {str(i): {"png": image, "cls": b"0"} for i in range(50)}
        by_webdataset(tmp_path / f"train/{number}.tar", samples)
    assert 0.2 < stats(tmp_path, num_measured=20).mean[0] < 0.8


def test_unreadable_samples_are_counted_separately(tmp_path: Path) -> None:
    whole = encoded(photo(0, (300, 300)))
    samples = {
        "good": {"jpg": jpeg(1), "cls": b"0"},
        "bomb": {"png": bomb(), "cls": b"0"},
        "half": {"jpg": whole[: len(whole) // 2], "cls": b"0"},
        "none": {"jpg": b"", "cls": b"0"},
    }
    by_webdataset(tmp_path / "train/a.tar", samples)
    found = stats(tmp_path)
    assert (found.num_unreadable, found.num_measured) == (3, 1)
    assert found.samples_per_class.tolist() == [4]  # their labels are sound
    by_webdataset(tmp_path / "train/a.tar", {"none": samples["none"]})
    found = stats(tmp_path)
    assert (found.num_unreadable, found.mean, found.widths) == (1, (), ())


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0]))
    stats(tmp_path)
    manifest = read_manifest(str(tmp_path), "train")
    (tmp_path / "train/a.tar").unlink()
    with pytest.raises(DataError) as caught:
        measure(str(tmp_path), "train", manifest, num_measured=1)
    assert caught.value.value == f"{tmp_path}/train/a.tar"
