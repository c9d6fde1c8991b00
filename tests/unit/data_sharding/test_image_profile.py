"""A profile finds colours and sizes in the pixels of some images, on any store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sharding.format.manifest import read_manifest
from data_sharding.sources.folder import folder
from data_sharding.tools.image_profile import profile_images
from data_sharding.writing.dataset_writer import write_dataset


def grey(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30), dtype=np.uint8)
    return Image.fromarray(pixels)


def coloured(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def written(place: Path, images: dict[str, Image.Image], url: str, num: int = 1000) -> str:
    for number, (name, image) in enumerate(images.items()):
        for split in ("train", "val"):
            directory = place / split / "ab"[number % 2]
            directory.mkdir(parents=True, exist_ok=True)
            image.save(directory / name)
    write_dataset(folder(place), url, seed=0, samples_per_shard=num)
    return url


def test_colours_are_detected_in_the_pixels_not_the_mode(tmp_path: Path) -> None:
    images = {
        "plain.png": grey(0),
        "as_colours.png": grey(1).convert("RGB"),
        "as_colours.jpg": grey(2).convert("RGB"),
        "16_bits.png": Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100),
        "palette.gif": grey(3),
    }
    url = written(tmp_path / "images", images, str(tmp_path / "set"))
    seen = profile_images(url, "train", read_manifest(url, "train"))
    assert seen is not None
    assert (seen.num_seen, seen.num_coloured, seen.size) == (5, 0, (30, 20))
    assert seen.formats == {"PNG": 3, "JPEG": 1, "GIF": 1}


def test_some_shards_are_enough(tmp_path: Path) -> None:
    images = {f"{i}.png": (coloured if i % 5 == 0 else grey)(i) for i in range(100)}
    url = written(tmp_path / "images", images, f"memory://{tmp_path.name}", num=10)
    seen = profile_images(url, "train", read_manifest(url, "train"))
    assert seen is not None
    assert seen.num_seen == 32
    assert 0 < seen.num_coloured < 20
    assert (seen.widths[::2], seen.heights[::2]) == ((24, 30), (20, 24))
    assert seen.size is None


def test_manifests_record_what_the_images_are(tmp_path: Path) -> None:
    url = written(
        tmp_path / "images", {"a.png": coloured(0), "b.png": coloured(1)}, str(tmp_path / "set")
    )
    for split in ("train", "val"):
        manifest = read_manifest(url, split)
        assert manifest.images == profile_images(url, split, manifest)
        assert manifest.images is not None
        assert replace(manifest, images=None).fingerprint == manifest.fingerprint


@pytest.mark.parametrize("damage", ["removed", "cut", "no tar", "no images"])
def test_unreadable_shards_have_no_profile(tmp_path: Path, damage: str) -> None:
    url = written(
        tmp_path / "images", {"a.png": coloured(0), "b.png": coloured(1)}, str(tmp_path / "set")
    )
    manifest = read_manifest(url, "train")
    shard = tmp_path / "set" / "train" / manifest.shards[0].name
    content = shard.read_bytes()
    shard.unlink()
    if damage == "cut":
        shard.write_bytes(content[:700])
    elif damage == "no tar":
        shard.write_bytes(b"x" * 2000)
    elif damage == "no images":
        shard.write_bytes(content.replace(b"PNG", b"GNP"))
    assert profile_images(url, "train", manifest) is None


def test_a_large_jpeg_is_not_decoded_whole(tmp_path: Path) -> None:
    large = Image.fromarray(np.zeros((3000, 4000, 3), dtype=np.uint8))
    large.putpixel((0, 0), (255, 0, 0))
    url = written(tmp_path / "images", {"a.jpg": large, "b.jpg": large}, str(tmp_path / "set"))
    seen = profile_images(url, "train", read_manifest(url, "train"))
    assert seen is not None
    assert seen.size == (4000, 3000)
