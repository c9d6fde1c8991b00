"""Files that are passed over are counted and logged, by index, webdataset and verify."""

import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import by_webdataset, index, jpeg, labelled
from hypothesis import given
from hypothesis import strategies as st

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.scanning.scan import ReadOptions, scan_shards
from data_sharding.sources.shards import from_webdataset
from data_sharding.tools.index import resolve_classes
from data_sharding.tools.remarks import describe_gaps, describe_runs
from data_sharding.tools.stats import measure
from data_sharding.tools.verify import verify

CLS, HALF = SampleRule(), 0.5


def concatenate(path: Path, *parts: Path) -> None:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A set whose tars hold links and more, with compressed ones beside them."""
    root, files = tmp_path / "odd", tmp_path / "files"
    for name in "a", "b":
        by_webdataset(tmp_path / f"{name}.tar", labelled([0, 1], first=ord(name)))
    (root / "train").mkdir(parents=True)
    concatenate(root / "train/two.tar", tmp_path / "a.tar", tmp_path / "b.tar")
    (files / "d").mkdir(parents=True)
    for name, data in ("x.jpg", jpeg(9)), ("x.cls", b"1"), ("x.seg.png", b""), (".DS_Store", b""):
        (files / "d" / name).write_bytes(data)
    (files / "y.jpg").symlink_to("d/x.jpg")
    (files / "y.cls").symlink_to("d/x.cls")
    subprocess.run(["tar", "-cf", root / "train/odd.tar", "-C", files, "."], check=True)
    subprocess.run(["gzip", "-k", root / "train/odd.tar"], check=True)
    by_webdataset(root / "val/v.tar", labelled([0, 1], first=30))
    return root


EXPECTED = [
    "symbolic link: 2 (first odd.tar: ./y.",
    "file of the system: 1 (first odd.tar: ./d/.DS_Store)",
    "image with another dot in its name: 1 (first odd.tar: ./d/x.seg.png)",
    "archive behind another: 1 (first two.tar: 0098.",
    "tar --dereference",
    "first dot",
    "stop at the end of the first",
    "not used: 1 (first odd.tar.gz)",
]


def test_index_and_webdataset_count_what_they_pass_over(
    tmp_path: Path, odd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index(odd)
    assert read_manifest(str(odd), "train").num_samples == 5
    assert all(part in caplog.text for part in EXPECTED), caplog.text
    caplog.clear()
    source = from_webdataset([str(odd)], CLS, ReadOptions(tmp_path))
    assert len(source.splits["train"]) == 5
    assert all(part in caplog.text for part in EXPECTED), caplog.text


def test_verify_counts_what_is_passed_over(odd: Path) -> None:
    index(odd)
    by_webdataset(odd / "val/late.tar", labelled([0, 1], first=50))
    found = verify(str(odd))
    assert found.problems == ()
    train_remarks = "\n".join(text for split, text in found.remarks if split == "train")
    assert all(part in train_remarks for part in EXPECTED), train_remarks
    (val_remark,) = (text for split, text in found.remarks if split == "val")
    assert "not used: 1 (first late.tar)" in val_remark


def test_index_warns_of_classes_without_training_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0, 3]))
    by_webdataset(tmp_path / "val/a.tar", labelled([0, 1, 2], first=50))
    index(tmp_path)
    assert "2 classes of val without an image in train: 1, 2." in caplog.text


def test_a_sound_set_has_no_remarks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Directories and texts of img2dataset are expected; indexes and digests are no shards."""
    for split, first in ("train", 0), ("val", 50):
        samples = labelled([0, 1, 0], first=first)
        others = {"json": b"{}", "txt": b"a cat"}
        by_webdataset(
            tmp_path / f"{split}/a.tar", {key: {**s, **others} for key, s in samples.items()}
        )
        for name in "a.idx", "a.tar.md5", ".b.tar.gz":
            (tmp_path / split / name).touch()
    index(tmp_path)
    assert verify(str(tmp_path)).remarks == ()
    assert caplog.records == []


def test_verify_counts_hard_links(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for name, data in ("a.jpg", jpeg(0)), ("a.cls", b"0"):
        (files / name).write_bytes(data)
    for name in "b.jpg", "b.cls":
        (files / name).hardlink_to(files / f"a.{name[-3:]}")
    path = tmp_path / "train/a.tar"
    path.parent.mkdir()
    subprocess.run(["tar", "--sort=name", "-cf", path, "-C", files, "."], check=True)
    index(tmp_path)
    manifest = tmp_path / "train/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"num_samples": 2', '"num_samples": 1'))
    (problem,) = verify(str(tmp_path)).problems
    assert problem.message == "holds 2 samples, and the manifest says 1"


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({0, 1, 2}, []),
        ({"a", "b"}, []),
        (set(), []),
        ({1, 2, 3}, ["3 numbers from 1 to 3", "counted from 1", "4 classes", "1 of them"]),
        ({0, 7, 1000}, ["3 numbers from 0 to 1,000", "1,001 classes", "998 of them"]),
        ({2, 3}, ["2 numbers from 2 to 3", "do not occur", "4 classes", "2 of them"]),
    ],
)
def test_gaps(values: set[int | str], parts: list[str]) -> None:
    found = describe_gaps(values)
    assert bool(found) == bool(parts)
    assert all(part in found for part in [*parts, *["`relabel`", "`class_map`"] * bool(parts)])


def test_labels_from_1_are_logged_and_can_be_renumbered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_webdataset(tmp_path / "in/a.tar", labelled([1, 2, 3] * 4))
    reading = ReadOptions(tmp_path)
    plain = from_webdataset([str(tmp_path / "in")], CLS, reading, val_fraction=HALF)
    assert plain.classes == ("0", "1", "2", "3")
    assert "counted from 1" in caplog.text
    caplog.clear()
    for names in None, ["cat", "dog", "犬"]:
        source = from_webdataset(
            [str(tmp_path / "in")], CLS, reading, val_fraction=HALF, classes=names, relabel=True
        )
        assert source.classes == tuple(names or "123")
        train = source.splits["train"]
        assert [
            (sample.label, int(sample.origin[-2:]) % 3)
            for sample in map(train.__getitem__, range(6))
        ] == [(n, n) for n in (int(train[i].origin[-2:]) % 3 for i in range(6))]
        assert source.fingerprint != plain.fingerprint
    assert caplog.records == []
    with pytest.raises(DataError) as caught:
        from_webdataset(
            [str(tmp_path / "in")],
            CLS,
            reading,
            val_fraction=HALF,
            classes=["a", "b"],
            relabel=True,
        )
    assert (caught.value.value, "`relabel`" in caught.value.hint) == (2, True)


def test_labels_that_cannot_be_renumbered(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "t.tar", labelled([1, 5]))
    by_webdataset(tmp_path / "v.tar", labelled([1, 7], first=9))
    train, val = str(tmp_path / "t.tar"), str(tmp_path / "v.tar")
    with pytest.raises(DataError, match=r"\(7\)"):
        from_webdataset([train], CLS, ReadOptions(tmp_path), val_urls=[val], relabel=True)
    by_webdataset(tmp_path / "n.tar", labelled(["a", "b"], "txt"))
    text = SampleRule(LabelRule(extension="txt"))
    with pytest.raises(DataError, match=r"\('a', 'b'\)"):
        from_webdataset(
            [str(tmp_path / "n.tar")], text, ReadOptions(tmp_path), val_fraction=HALF, relabel=True
        )


def test_given_classes_cause_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = by_webdataset(tmp_path / "a.tar", labelled([1, 2]))
    scans = {"train": scan_shards([str(path)], CLS, ReadOptions())}
    assert resolve_classes(scans, ["a", "b", "c"]) == ("a", "b", "c")
    assert caplog.records == []


@given(st.integers(2, 20), st.integers(40, 300), st.integers(0, 2**32), st.integers(1, 4))
def test_describe_runs_finds_sorted_samples_only(
    num_classes: int, num_samples: int, seed: int, num_shards: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, num_classes, num_samples)
    labels[:2] = 0, 1
    assert describe_runs(np.array_split(labels, num_shards)) == ""
    is_enough = num_samples * (1 - np.square(np.bincount(labels) / num_samples).sum()) > 90
    by_label = describe_runs(np.array_split(np.sort(labels), num_shards))
    if is_enough:
        assert "sorted by label" in by_label


def test_few_or_equal_labels_have_no_order() -> None:
    for labels in [], [np.zeros(500, int)], [np.array([0])], [np.repeat([0, 1], 9)]:
        assert describe_runs(labels) == ""


def test_index_and_stat_warn_of_sorted_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([n // 10 for n in range(40)]))
    shutil.copytree(tmp_path / "train", tmp_path / "other/val")
    by_webdataset(tmp_path / "other/train/a.tar", labelled([n % 4 for n in range(40)], first=50))
    index(tmp_path)
    assert "train: samples are sorted by label: 92%" in caplog.text
    manifest = read_manifest(str(tmp_path), "train")
    caplog.clear()
    measure(str(tmp_path), "train", manifest, num_measured=1)
    assert "train: samples are sorted by label: 92%" in caplog.text
    caplog.clear()
    index(tmp_path / "other")  # the order of validation does not matter
    assert caplog.records == []


def test_a_warning_is_a_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([1, 2]))
    index(tmp_path)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
