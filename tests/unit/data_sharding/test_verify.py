"""All problems of a data set are found at once, and named with shard and key."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from foreign_shards import bomb, by_webdataset, encoded, index, jpeg, labelled, photo, png

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest, url_of, write_manifest
from data_sharding.format.shard_digest import file_sha256
from data_sharding.format.shard_table import ShardTable
from data_sharding.scanning.scan import COPY_AGAIN, DAMAGED, FIX_LABEL, REPLACE_IMAGE, ReadOptions
from data_sharding.tools.verify import SAME_CLASSES, Problem, verify


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sound shards and their manifests."""
    for number in range(2):
        by_webdataset(tmp_path / f"train/{number}.tar", labelled([0, 1, 2], first=10 * number))
    by_webdataset(tmp_path / "val/0.tar", labelled([0, 1, 2], first=50))
    index(tmp_path)
    return tmp_path


def problems(root: Path, *, decode: bool = True, num_workers: int = 1) -> list[Problem]:
    return list(verify(str(root), ReadOptions(num_workers=num_workers), decode=decode).problems)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_sound_set_has_no_problems(root: Path) -> None:
    seen: list[int] = []
    assert verify(str(root), ReadOptions(on_progress=seen.append)).problems == ()
    assert seen[-1] == 9


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_damage_is_found_at_once(root: Path, num_workers: int) -> None:
    (root / "train/0.tar").unlink()
    data = (root / "train/1.tar").read_bytes()
    (root / "train/1.tar").write_bytes(data[:5000])
    flip(root / "val/0.tar", 512 + 300)  # in the pixels of the first image
    found = problems(root, num_workers=num_workers)
    assert [(p.split, p.shard, p.message) for p in found if not p.key] == [
        ("train", "0.tar", "is missing"),
        ("train", "1.tar", f"is truncated: 5,000 of {len(data):,} bytes"),
        ("train", "1.tar", next(p.message for p in found if "no usable samples" in p.message)),
        ("val", "0.tar", "has the right size and other bytes: its digest is not the manifest's"),
    ]
    assert {p.fix for p in found} == {COPY_AGAIN}


def test_sampled_digests_are_compared(root: Path) -> None:
    manifest = read_manifest(str(root), "val")
    with (root / "val/0.tar").open("rb") as file:
        digest = file_sha256(file, "sampled")
    shards = [replace(shard, sha256=digest, digest="sampled") for shard in manifest.shards]
    write_manifest(str(root), "val", replace(manifest, shards=ShardTable.from_infos(shards)))
    assert read_manifest(str(root), "val").fingerprint != manifest.fingerprint
    assert problems(root) == []
    flip(root / "val/0.tar", 512 + 300)
    assert [p.shard for p in problems(root, decode=False)] == ["0.tar"]


def test_wrong_number_of_samples_is_named(root: Path) -> None:
    by_webdataset(root / "val/0.tar", labelled([0, 1, 2, 0]))
    assert any(p.message == "holds 4 samples, and the manifest says 3" for p in problems(root))


def test_every_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    whole = encoded(photo(3, (400, 300)))
    samples = {
        "half": {"jpg": whole[: len(whole) // 2], "cls": b"0"},
        "png named jpg": {"jpg": png(1), "cls": b"0"},
        "cmyk": {"jpg": jpeg(2, "CMYK"), "cls": b"0"},
        "bomb": {"png": bomb(), "cls": b"0"},
        "large": {"png": bomb(10_000), "cls": b"0"},
        "text": {"jpg": b"<html>404</html>", "cls": b"0"},
        "empty": {"jpg": b"", "cls": b"0"},
        "犬": {"png": png(4)[:-30], "cls": b"0"},
    }
    by_webdataset(tmp_path / "train/a.tar", samples)
    index(tmp_path)
    found = {p.key: p for p in problems(tmp_path)}
    assert set(found) == {"half", "bomb", "large", "text", "empty", "犬"}
    assert "truncated" in found["half"].message
    assert found["bomb"].message.startswith("is too large: Image size (2500000000 pixels)")
    assert found["large"].message.startswith("is too large: 10000 x 10000 pixels")
    assert found["text"].message.startswith("is none of JPEG, PNG")
    assert {p.fix for p in found.values()} == {REPLACE_IMAGE}
    assert {(p.split, p.shard) for p in found.values()} == {("train", "a.tar")}
    assert problems(tmp_path, decode=False) == []


def test_damage_that_decoders_tolerate_is_named(tmp_path: Path) -> None:
    whole = encoded(photo(3, (400, 300)))
    closed = whole[: len(whole) // 2] + b"\xff\xd9"
    samples = {"sound": {"jpg": whole, "cls": b"0"}, "closed": {"jpg": closed, "cls": b"0"}}
    by_webdataset(tmp_path / "train/a.tar", samples)
    index(tmp_path)
    (found,) = problems(tmp_path)
    assert (found.shard, found.key, found.fix) == ("a.tar", "closed", DAMAGED)
    assert "damage" in found.message
    assert problems(tmp_path, decode=False) == []


def test_labels_without_a_class_are_named(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0, 1, 2]))
    index(tmp_path)
    manifest = Path(url_of(str(tmp_path), "train"))
    values = json.loads(manifest.read_text())
    values["classes"] = ["only", "two"]
    manifest.write_text(json.dumps(values))
    assert [(p.key, p.message, p.fix) for p in problems(tmp_path)] == [
        ("0002", "has the label 2, and there are 2 classes", FIX_LABEL)
    ]


def test_splits_of_other_classes(root: Path) -> None:
    manifest = Path(url_of(str(root), "val"))
    manifest.write_text(manifest.read_text().replace('"2"', '"two"'))
    assert [(p.split, p.shard, p.fix) for p in problems(root)] == [("val", "", SAME_CLASSES)]


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set at"):
        verify(str(tmp_path))
    with pytest.raises(DataError) as caught:
        verify("nope://x")
    assert caught.value.value == "nope://x/train/manifest.json"
