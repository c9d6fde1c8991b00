"""Which directories are splits and classes, and what only looks like them."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from image_folders import error_of, listed, make

from data_sharding.sources.folder import folder


def test_test_stands_in_for_val(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    assert listed(folder(tmp_path), "val") == [("00000000-2", "png", 0, "test/a/2.png")]
    make(tmp_path, "val/a/3.png")
    source = folder(tmp_path)
    assert listed(source, "val") == [("00000000-3", "png", 0, "val/a/3.png")]
    assert source.skipped.counts == {"beside the splits": 1}


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "test", "Testing"])
def test_names_of_splits_in_any_case(tmp_path: Path, train: str, val: str) -> None:
    make(tmp_path, f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{val}/b/3.jpg")
    source = folder(tmp_path)
    assert source.classes == ("a", "b")
    assert [text for *_, text in listed(source, "val")] == [f"{val}/b/3.jpg"]
    assert error_of(tmp_path, 0.1).value == 0.1


def test_two_directories_for_one_split(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "Validation/a/3.jpg")
    assert "Validation and val" in error_of(tmp_path).problem


def test_train_may_be_a_class(tmp_path: Path) -> None:
    names = [f"{name}/{n}.jpg" for name in ("bus", "car", "train") for n in range(4)]
    source = folder(make(tmp_path, *names), 0.25)
    assert source.classes == ("bus", "car", "train")
    assert len(source.splits["val"]) == 3


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["train/1.jpg", "val/2.jpg"], "train, val"),
        (["Testing/a/1.jpg", "Testing/b/2.jpg", "valid/a/3.jpg"], "Testing, valid"),
        (["a/1.jpg", "b/2.jpg", "test/a/1.jpg"], "test"),
        (["set/a/1.jpg", "set/b/1.jpg"], "give {root}/set"),
        (["set/train/a/1.jpg", "set/val/a/1.jpg"], "train, val"),
        (["a/1.jpg", "a/2.jpg"], "single class, a"),
        (["a/Train/1.jpg", "a/Test/2.jpg", "b/Train/1.jpg", "b/Test/1.jpg"], "Test, Train"),
        (["web/cat/1.jpg", "web/dog/2.jpg", "art/cat/3.jpg", "art/dog/4.jpg"], "cat, dog"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, names: list[str], named: str) -> None:
    make(tmp_path, *names)
    for val_fraction in (None, 0.5):
        assert named.format(root=tmp_path) in str(error_of(tmp_path, val_fraction))
    make(tmp_path / "home/val", "a/1.jpg")
    (tmp_path / "home/train").mkdir()
    if not any(name.startswith(("train", "set/train")) for name in names):
        for name in names:
            make(tmp_path / "home/train", name)
        error = error_of(tmp_path / "home")
        assert named.format(root=tmp_path / "home/train") in str(error)


def test_classes_may_hold_the_same_directory(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{name}/images/{n}.jpg" for name in "ab" for n in range(2)))
    make(tmp_path, "train/a/boxes.txt", "val/a/1.jpg")  # as Tiny ImageNet does
    assert folder(tmp_path).classes == ("a", "b")


def test_classes_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    make(tmp_path, *(f"{n}/{i}.jpg" for n in (10, 2, 1, 0) for i in range(2)))
    assert folder(tmp_path, 0.5).classes == ("0", "1", "2", "10")


def test_both_forms_of_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Übung") for form in ("NFC", "NFD"))
    make(tmp_path, f"train/{composed}/1.jpg", f"train/{decomposed}/2.jpg", "train/a/3.jpg")
    make(tmp_path, f"val/{decomposed}/4.jpg")
    source = folder(tmp_path)
    assert source.classes == ("a", composed)
    assert Counter(label for _, _, label, _ in listed(source, "train")) == {0: 1, 1: 2}
    assert [label for _, _, label, _ in listed(source, "val")] == [1]


JUNK = (
    *("__MACOSX", ".Trashes", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information"),
    *("@eaDir", "#recycle", "lost+found", "__pycache__", ".ipynb_checkpoints", ".git"),
)


@pytest.mark.parametrize("prefix", ["train/", "train/a/", "val/", ""])
def test_what_systems_leave_is_no_class_and_no_image(tmp_path: Path, prefix: str) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg")
    make(tmp_path, *(f"{prefix}{name}/a/5.jpg" for name in JUNK))
    make(tmp_path, *(f"{prefix}{name}" for name in ("Thumbs.db", ".DS_Store", "._1.jpg")))
    source = folder(tmp_path)
    assert source.classes == ("a", "b")
    assert [len(source.splits[split]) for split in ("train", "val")] == [2, 2]
    assert source.skipped.counts.total() == len(JUNK) + 3


def test_what_systems_leave_beside_classes(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{n}.jpg" for name in ("a", "b", *JUNK) for n in range(2)))
    source = folder(tmp_path, 0.5)
    assert source.classes == ("a", "b")
    assert source.skipped.counts.total() == len(JUNK)


def test_no_directory(tmp_path: Path) -> None:
    make(tmp_path, "file")
    for name in "x y", "file":
        assert error_of(tmp_path / name).value == str(tmp_path / name)


def test_validation_images_are_given_or_chosen(tmp_path: Path) -> None:
    neither = error_of(make(tmp_path / "a", "a/1.jpg", "b/1.jpg"))
    both = error_of(make(tmp_path / "b", "train/a/1.jpg", "val/a/1.jpg"), 0.3)
    no_val = error_of(make(tmp_path / "c", "train/a/1.jpg"))
    assert (neither.value, both.value, no_val.value) == (None, 0.3, None)
    assert all("`val_fraction`" in error.hint for error in (neither, both, no_val))
    assert str(tmp_path / "b/train") in both.hint


def test_no_classes(tmp_path: Path) -> None:
    assert error_of(make(tmp_path, "1.jpg"), 0.1).value == str(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    assert error_of(tmp_path).value == str(tmp_path / "train")
