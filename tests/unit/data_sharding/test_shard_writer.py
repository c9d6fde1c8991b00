"""Image checks: every finding is reported, and sound images are stored as they are."""

import json
import shutil
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import bomb, contents, encoded, jpeg, photo, png
from PIL import Image

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.image.open_image import load_image, to_mode
from data_sharding.image.quality_report import MAX_NAMES, QualityFindings
from data_sharding.image.resize import ResizeSettings
from data_sharding.sources.base import Sample, Source
from data_sharding.sources.csv_file import Columns, csv_file
from data_sharding.sources.folder import folder
from data_sharding.writing.dataset_writer import Dataset, write_dataset
from data_sharding.writing.dedupe import find_duplicates
from data_sharding.writing.shard_writer import ImageChecks

SPLITS = ("train", "val")


def make(root: Path, images: Mapping[str, bytes]) -> Path:
    for name, data in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def pets(num: int = 40) -> dict[str, bytes]:
    """Return sound images that all differ, a quarter of them for validation."""
    return {
        f"{'val' if n % 4 == 0 else 'train'}/{'ab'[n // 4 % 2]}/{n}.jpg": jpeg(n)
        for n in range(num)
    }


def write(
    root: Path, url: Path, checks: ImageChecks | None = None, num_workers: int = 1
) -> Dataset:
    return write_dataset(
        folder(root), str(url), seed=0, samples_per_shard=4, num_workers=num_workers,
        checks=checks or ImageChecks(max_bad_fraction=0.5),
    )  # fmt: skip


def stored(url: Path) -> dict[str, dict[str, tuple[str, bytes]]]:
    """Return shard -> member -> bytes for every image of a set."""
    found: dict[str, dict[str, tuple[str, bytes]]] = {}
    for path in sorted(url.glob("*/*.tar")):
        with ShardReader(path) as reader:
            found[f"{path.parent.name}/{path.stem}"] = {
                reader.key(i): (bytes(reader.label_bytes(i)).decode(), bytes(reader.image(i)))
                for i in range(len(reader))
            }
    return found


def rules(dataset: Dataset) -> dict[str, tuple[int, list[str]]]:
    assert dataset.report is not None
    return {
        rule: (found["count"], found["names"]) for rule, found in dataset.report["rules"].items()
    }


def test_sound_images_are_stored_as_they_are(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", pets())
    dataset = write(root, tmp_path / "set")
    images = sorted(
        data for shard in stored(tmp_path / "set").values() for _, data in shard.values()
    )
    assert images == sorted(pets().values())
    assert rules(dataset) == {}
    assert json.loads((tmp_path / "set/quality_report.json").read_text()) == dataset.report
    again = write(root, tmp_path / "set")
    assert again.reused
    assert again.report == dataset.report


def test_an_image_changed_at_equal_size_makes_another_set(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", pets())
    write(root, tmp_path / "set")
    (root / "train/a/1.jpg").write_bytes((root / "train/a/1.jpg").read_bytes()[::-1])
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "set")
    assert caught.value.value == str(tmp_path / "set")
    assert sorted(d for s in stored(tmp_path / "set").values() for _, d in s.values()) == sorted(
        pets().values()
    )


def test_an_image_that_changes_while_writing_is_stopped_is_read_again(tmp_path: Path) -> None:
    images = {**pets(), "val/a/1.bmp": encoded(photo(1), "bmp"), "train/a/1.jpg": b"broken"}
    root = make(tmp_path / "pets", images)
    with pytest.raises(DataError, match="corrupt"):
        write(root, tmp_path / "set", ImageChecks(max_bad_fraction=0))
    changed = {"val/a/1.bmp": encoded(photo(2), "bmp")}
    make(root, changed)
    write(root, tmp_path / "set", ImageChecks(max_bad_fraction=0.5))
    found = [data for shard in stored(tmp_path / "set").values() for _, data in shard.values()]
    assert changed["val/a/1.bmp"] in found
    assert images["val/a/1.bmp"] not in found


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_corrupt_image_is_dropped_and_moves_no_other(tmp_path: Path, num_workers: int) -> None:
    images = pets()
    write(make(tmp_path / "pets", images), tmp_path / "sound", num_workers=num_workers)
    bad = {"train/a/1.jpg": images["train/a/1.jpg"][:-9], "val/b/4.jpg": b"", "train/b/5.jpg": b"x"}
    dataset = write(make(tmp_path / "pets", bad), tmp_path / "set", num_workers=num_workers)
    expected = stored(tmp_path / "sound")
    for shard in expected.values():
        for key in [key for key in shard if key.partition("-")[2] in ("1", "4", "5")]:
            del shard[key]
    assert stored(tmp_path / "set") == expected
    num, names = rules(dataset)["corrupt"]
    assert num == 3
    assert sorted(name.partition(":")[0] for name in names) == sorted(bad)
    assert any("val/b/4.jpg: is empty" in name for name in names)
    assert dataset.report is not None
    assert dataset.report["num_stored"] == 37
    assert dataset.report["rules"]["corrupt"]["share"] == 3 / 40
    assert sum(m.num_samples for m in dataset.manifests.values()) == 37


def cut_and_closed(number: int) -> bytes:
    whole = encoded(photo(number, (160, 120)))
    return whole[: len(whole) // 2] + b"\xff\xd9"


def test_images_that_decode_with_damage_are_named_and_kept_or_dropped(tmp_path: Path) -> None:
    odd = {"train/a/1.jpg": cut_and_closed(1), "val/b/4.jpg": cut_and_closed(4)}
    root = make(tmp_path / "pets", pets() | odd)
    for drop, rule, num_stored in ((False, "damaged", 40), (True, "damaged_left_out", 38)):
        url = tmp_path / rule
        dataset = write(root, url, ImageChecks(drop_damaged=drop))  # they are no corrupt ones
        ((found, (num, names)),) = rules(dataset).items()
        assert (found, num) == (rule, 2)
        assert sorted(name.partition(":")[0] for name in names) == sorted(odd)
        assert sum(manifest.num_samples for manifest in dataset.manifests.values()) == num_stored
        images = {data for shard in stored(url).values() for _, data in shard.values()}
        assert (images >= set(odd.values())) is not drop
    assert rules(write(root, tmp_path / "trusted", ImageChecks(decode=False))) == {}


def test_an_empty_shard_is_dropped(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", pets())
    write(root, tmp_path / "sound")
    keys = stored(tmp_path / "sound")["train/shard-000002"]
    names = {key.partition("-")[2] for key in keys}
    for path in root.glob("train/*/*.jpg"):
        if path.stem in names:
            path.write_bytes(b"gone")
    dataset = write(root, tmp_path / "set")
    names_left = [shard.name for shard in dataset.manifests["train"].shards]
    assert names_left == [f"shard-{number:06d}.tar" for number in range(8) if number != 2]
    assert sorted(path.name for path in (tmp_path / "set/train").glob("*.tar")) == names_left


@pytest.mark.parametrize("num_workers", [1, 2])
def test_too_many_corrupt_images_stop_the_writing(tmp_path: Path, num_workers: int) -> None:
    bad = {"train/a/1.jpg": b"x", "train/b/5.jpg": b"x"}
    root, url = make(tmp_path / "pets", pets() | bad), tmp_path / "set"
    with pytest.raises(DataError, match=r"(1|5)\.jpg: is none of") as caught:
        write(root, url, ImageChecks(max_bad_fraction=1 / 40), num_workers)
    assert (caught.value.value, "`max_bad_fraction`" in caught.value.hint) == (2, True)
    assert not list(url.glob("*/manifest.json"))
    kept = {path: path.stat().st_mtime_ns for path in url.glob("val/*.tar")}
    assert write(root, url, ImageChecks(max_bad_fraction=2 / 40), num_workers).report
    assert {path: path.stat().st_mtime_ns for path in url.glob("val/*.tar")} == kept


def test_a_large_image_is_not_called_corrupt(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", {**pets(), "train/a/bomb.png": bomb(), "val/b/8.jpg": b"x"})
    found = rules(write(root, tmp_path / "set"))
    assert found["corrupt"][0] == 1
    num, (name,) = found["too_large"]
    assert (num, name.partition(": is too large")[0]) == (1, "train/a/bomb.png")
    with pytest.raises(DataError, match="corrupt or too large") as caught:
        write(root, tmp_path / "other", ImageChecks(max_bad_fraction=0.03))
    assert "`max_side`" in caught.value.hint


def test_a_huge_jpeg_is_made_smaller(tmp_path: Path) -> None:
    huge = Image.new("RGB", (18_000, 5_000), (200, 40, 20))
    huge.paste((20, 60, 180), (9_000, 0, 18_000, 5_000))
    data = encoded(huge)
    images = {**pets(), "train/a/huge.jpg": data, "train/b/cut.jpg": data[: len(data) // 2]}
    root = make(tmp_path / "pets", images)
    found = rules(
        write(root, tmp_path / "set", ImageChecks(0.5, shrink=ResizeSettings(max_side=360)))
    )
    assert found["shrunk"][0] == 1
    assert sum(num for rule, (num, _) in found.items() if rule in ("corrupt", "too_large")) == 1
    members = {k: d for shard in stored(tmp_path / "set").values() for k, (_, d) in shard.items()}
    (small,) = (data for key, data in members.items() if key.endswith("-huge"))
    image = Image.open(BytesIO(small))
    assert image.size == (360, 100)
    for x, colour in ((90, (200, 40, 20)), (270, (20, 60, 180))):
        assert image.getpixel((x, 50)) == pytest.approx(colour, abs=6)
    assert rules(write(root, tmp_path / "whole"))["too_large"][0] == 1


def test_all_of_a_split_is_corrupt(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", dict.fromkeys(pets(), b"x"))
    with pytest.raises(DataError) as caught:
        write(root, tmp_path / "set", ImageChecks(max_bad_fraction=1))
    assert caught.value.value == "val"


def test_a_wrong_extension_is_corrected(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", pets() | {"train/a/1.jpg": png(1), "train/b/6.jpg": png(6, "P")})
    found = rules(write(root, tmp_path / "set"))
    assert found["wrong_extension"][0] == 2
    assert set(found["wrong_extension"][1]) == {"train/a/1.jpg", "train/b/6.jpg"}
    assert found["palette"] == (1, ["train/b/6.jpg"])
    by_extension = json.dumps([m for m in _members(tmp_path / "set") if m.endswith(".png")])
    assert "-1.png" in by_extension
    assert "-6.png" in by_extension


def _members(url: Path) -> list[str]:
    found = []
    for path in url.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            found += tar.getnames()
    return found


def test_the_report_does_not_depend_on_the_directory(tmp_path: Path) -> None:
    make(tmp_path / "here", pets() | {"train/a/1.jpg": b"x", "train/犬/ä 1.jpg": b"y"})
    shutil.copytree(tmp_path / "here", tmp_path / "there")  # with the times of the files
    for name in "here", "there":
        write(tmp_path / name, tmp_path / f"set {name}")
    assert contents(tmp_path / "set here") == contents(tmp_path / "set there")
    assert "train/犬/ä 1.jpg" in (tmp_path / "set here/quality_report.json").read_text("utf-8")


def test_many_findings_are_counted_and_some_named() -> None:
    findings = QualityFindings()
    for number in range(MAX_NAMES + 50):
        findings.add("corrupt", str(number))
    assert findings.counts["corrupt"] == MAX_NAMES + 50
    assert findings.names["corrupt"] == [str(number) for number in range(MAX_NAMES)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_duplicates(tmp_path: Path, num_workers: int) -> None:
    images = pets()
    copies = {
        "train/a/copy.jpg": images["train/a/2.jpg"],  # comes after it
        "train/b/again.jpg": images["train/a/2.jpg"],  # of another class
        "train/a/leak.jpg": images["val/a/8.jpg"],
        "val/b/twice.jpg": images["val/a/8.jpg"],
    }
    checks = ImageChecks(dedupe=True)
    dataset = write(make(tmp_path / "pets", images | copies), tmp_path / "set", checks, num_workers)
    assert rules(dataset) == {
        "leak": (1, ["train/a/leak.jpg is val/a/8.jpg"]),
        "duplicate": (
            2, ["train/a/copy.jpg is train/a/2.jpg", "train/b/again.jpg is train/a/2.jpg"],
        ),
        "duplicate_in_val": (1, ["val/b/twice.jpg is val/a/8.jpg"]),
        "label_conflict": (
            2, ["val/b/twice.jpg is val/a/8.jpg: a and b",
                "train/b/again.jpg is train/a/2.jpg: a and b"],
        ),
    }  # fmt: skip
    kept = [key.partition("-")[2] for shard in stored(tmp_path / "set").values() for key in shard]
    assert sorted(kept) == sorted([*map(str, range(40)), "twice"])
    assert dataset.manifests["train"].source["dedupe"] is True


@pytest.mark.parametrize("cause", ["copies", "corrupt", "neither"])
def test_a_class_left_only_in_val_is_a_warning(tmp_path: Path, cause: str) -> None:
    images = pets(16)
    images |= {name: data for name, data in pets(24).items() if name.startswith("train/b/")}
    for name in [name for name in images if name.startswith("train/b/")]:
        if cause != "neither":
            images[name] = images["train/a/1.jpg"] if cause == "copies" else b"x"
    root, checks = make(tmp_path / "pets", images), ImageChecks(0.9, dedupe=True)
    for _ in range(2):  # made, and there already
        report = write(root, tmp_path / "set", checks).report
        assert report is not None
        assert len(report["warnings"]) == (cause != "neither")
        assert all("1 class of val without an image in train: b." in w for w in report["warnings"])


def test_a_class_chosen_only_for_val_is_a_warning(tmp_path: Path) -> None:
    make(tmp_path, {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,a;b\n2.jpg,a;c\n")
    source = csv_file(tmp_path / "list.csv", Columns(separator=";"), val_fraction=0.5)
    url = str(tmp_path / "set")
    report = write_dataset(source, url, seed=0, samples_per_shard=4, checks=ImageChecks()).report
    assert report is not None
    alone = source.classes[source.splits["val"][0].labels[-1]]
    assert [f"in train: {alone}." in warning for warning in report["warnings"]] == [True]


def test_a_link_is_a_duplicate_for_dedupe_and_kept_otherwise(tmp_path: Path) -> None:
    root = make(tmp_path / "pets", pets(8))
    (root / "train/a/0.jpg").symlink_to(root / "train/b/6.jpg")  # listed before the file
    link = ["train/b/6.jpg is train/a/0.jpg"]
    assert rules(write(root, tmp_path / "kept")) == {"linked_twice": (1, link)}
    found = rules(write(root, tmp_path / "set", ImageChecks(dedupe=True)))
    assert found.pop("label_conflict") == (1, [f"{link[0]}: a and b"])
    assert found == {"duplicate": (1, link)}
    keys = {key.partition("-")[2] for shard in stored(tmp_path / "set").values() for key in shard}
    assert keys == {*map(str, range(8))} - {"6"}


def test_equal_sizes_are_no_duplicates(tmp_path: Path) -> None:
    images = {name: encoded(photo(number), "bmp") for number, name in enumerate(pets(12))}
    root = make(tmp_path / "pets", images)
    assert len({path.stat().st_size for path in root.rglob("*.jpg")}) == 1
    dataset = write(root, tmp_path / "set", ImageChecks(dedupe=True))
    assert set(rules(dataset)) == {"wrong_extension"}


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    large = {"train/a/1.jpg": encoded(photo(1, (300, 200))), "train/b/5.jpg": png(5)}
    large["train/a/2.jpg"] = encoded(photo(2, (300, 200)), "png")
    root = make(tmp_path / "pets", pets() | large)
    shrink = ResizeSettings(max_side=100)
    dataset = write(root, tmp_path / "set", ImageChecks(shrink=shrink))
    images = {
        key.partition("-")[2]: data
        for shard in stored(tmp_path / "set").values()
        for key, (_, data) in shard.items()
    }
    for number in range(40):
        name = str(number)
        before = next(root.glob(f"*/*/{name}.jpg")).read_bytes()
        assert images[name] == (shrink.apply(before) if name in ("1", "2") else before)
    assert rules(dataset)["shrunk"] == (2, [])
    assert rules(dataset)["wrong_extension"][0] == 2  # of the files as they were
    assert dataset.manifests["train"].source["shrink"] == {"max_side": 100, "quality": 90}
    with pytest.raises(DataError, match=r"quality': 90.*quality': 80"):
        write(root, tmp_path / "set", ImageChecks(shrink=ResizeSettings(max_side=100, quality=80)))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_12_bit_greys_are_scaled_on_request(tmp_path: Path, kind: str) -> None:
    values = np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 10
    values[-1, -1] = 4095
    dark = encoded(Image.fromarray(values), kind)
    root = make(tmp_path / "pets", {**pets(8), "train/a/dark.tif": dark})
    assert rules(write(root, tmp_path / "as it is"))["few_levels"][0] == 1
    found = rules(write(root, tmp_path / "set", ImageChecks(0, bit_depth=12)))
    assert (found["widened"], found["16_bit"][0]) == ((1, []), 1)
    assert "few_levels" not in found
    members = {k: d for shard in stored(tmp_path / "set").values() for k, (_, d) in shard.items()}
    (data,) = (data for key, data in members.items() if key.endswith("-dark"))
    assert np.array_equal(np.asarray(to_mode(load_image(data), "L")), values >> 4)
    assert sorted(set(members.values()) - {data}) == sorted(pets(8).values())
    with pytest.raises(DataError, match="has values from 0 to 4095: known are 0 to 1023"):
        write(root, tmp_path / "other", ImageChecks(0, bit_depth=10))


def test_labels_in_another_order_are_no_conflict() -> None:
    def sample(key: str, *label: int) -> Sample:
        return Sample(key, "jpg", label, key, lambda: b"the same")

    train = [sample("a", 0, 1), sample("b", 1, 0), sample("c", 0)]
    source = Source(("x", "y"), {"train": train, "val": []}, {}, labels=LabelRule("multi"))
    found = find_duplicates(source, num_workers=1, on_progress=lambda done, total: None)
    assert found.dropped == {"train": (1, 2)}
    assert found.findings.names["label_conflict"] == ["c is a: x|y and x"]
