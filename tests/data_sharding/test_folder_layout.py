"""Which directories are splits and classes, and what only looks like them."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from folders import listed, make, refusal

from data_sharding.sources.folder import folder


def test_test_stands_in_for_val(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    assert listed(folder(tmp_path), "val") == [("00000000-2", "png", 0, "test/a/2.png")]
    make(tmp_path, "val/a/3.png")
    source = folder(tmp_path)
    assert listed(source, "val") == [("00000000-3", "png", 0, "val/a/3.png")]
    assert source.skipped == {"beside the splits": 1}


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", "test", "Testing"])
def test_names_of_splits(tmp_path: Path, train: str, val: str) -> None:
    make(tmp_path, f"{train}/a/1.jpg", f"{train}/b/2.jpg", f"{val}/b/3.jpg")
    source = folder(tmp_path)
    assert source.classes == ("a", "b")
    assert [text for *_, text in listed(source, "val")] == [f"{val}/b/3.jpg"]
    assert f"has a {train}/" in refusal(tmp_path, 0.1)


def test_two_directories_for_one_split(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "Validation/a/3.jpg")
    assert "Validation and val" in refusal(tmp_path)


def test_a_class_of_trains(tmp_path: Path) -> None:
    names = [f"{name}/{n}.jpg" for name in ("bus", "car", "train") for n in range(4)]
    source = folder(make(tmp_path, *names), 0.25)
    assert source.classes == ("bus", "car", "train")
    assert len(source.splits["val"]) == 3


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["train/1.jpg", "val/2.jpg"], "splits are called"),
        (["Testing/a/1.jpg", "Testing/b/2.jpg", "valid/a/3.jpg"], "splits are called"),
        (["a/1.jpg", "b/2.jpg", "test/a/1.jpg"], "splits are called"),
        (["set/a/1.jpg", "set/b/1.jpg"], "give {root}/set"),
        (["set/train/a/1.jpg", "set/val/a/1.jpg"], "holds no images but train, val"),
        (["a/1.jpg", "a/2.jpg"], "has one class, a"),
        (["a/Train/1.jpg", "a/Test/2.jpg", "b/Train/1.jpg", "b/Test/1.jpg"], "but Test, Train"),
        (["web/cat/1.jpg", "web/dog/2.jpg", "art/cat/3.jpg", "art/dog/4.jpg"], "cat, dog"),
    ],
)
def test_what_is_no_class(tmp_path: Path, names: list[str], reason: str) -> None:
    make(tmp_path, *names)
    for val_fraction in (None, 0.5):
        assert reason.format(root=tmp_path) in refusal(tmp_path, val_fraction)
    make(tmp_path / "home/val", "a/1.jpg")
    (tmp_path / "home/train").mkdir()
    if not any(name.startswith(("train", "set/train")) for name in names):
        for name in names:
            make(tmp_path / "home/train", name)
        wrong = refusal(tmp_path / "home")
        assert reason.format(root=tmp_path / "home/train") in wrong


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


def test_no_directory(tmp_path: Path) -> None:
    assert f"no directory at {tmp_path / 'x y'}" in refusal(tmp_path / "x y")
    make(tmp_path, "file")
    assert "no directory at" in refusal(tmp_path / "file")


def test_no_split_said(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, "a/1.jpg", "b/1.jpg"))
    assert "no train/" in message
    assert "--val-fraction 0.1" in message


def test_split_said_twice(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, "train/a/1.jpg", "val/a/1.jpg"), 0.3)
    assert "has a train/, and --val-fraction 0.3" in message
    assert f"give {tmp_path / 'train'} as the directory" in message


def test_train_without_val(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, "train/a/1.jpg"))
    assert "neither val/ nor test/" in message
    assert "--val-fraction 0.1" in message


def test_no_classes(tmp_path: Path) -> None:
    assert "no classes" in refusal(make(tmp_path, "1.jpg"), 0.1)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    assert f"{tmp_path / 'train'} has no classes" in refusal(tmp_path)
