"""Every layout is listed as documented, and what cannot be used is refused with a reason."""

import io
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sharding.folder_source import folder
from data_sharding.manifest import DataError
from data_sharding.sources import Source, digits, permutation


def make(root: Path, *names: str) -> Path:
    """Write files that hold their own name; a source does not look into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def listed(source: Source, split: str) -> list[tuple[str, str, int, str]]:
    samples = source.splits[split]
    found = [samples[i] for i in range(len(samples))]
    return [(s.key, s.extension, s.label, s.read().decode()) for s in found]


def refusal(directory: Path, val_fraction: float | None = None) -> str:
    with pytest.raises(DataError) as caught:
        folder(directory, val_fraction)
    assert "othing was written" in str(caught.value)
    return str(caught.value)


def test_permutation_never_changes() -> None:
    pinned = [5, 2, 7, 3, 6, 0, 9, 4, 1, 8]  # from a Philox4x64-10 that is not numpy's
    assert permutation(0, "a", 10).tolist() == pinned
    assert permutation(1, "a", 10).tolist() != pinned
    assert permutation(0, "b", 10).tolist() != pinned
    assert sorted(permutation(3, "c", 1000).tolist()) == list(range(1000))
    assert permutation(0, "a", 0).tolist() == []


def test_digits_are_the_digits() -> None:
    from sklearn.datasets import load_digits

    source = digits()
    pixels, targets = load_digits(return_X_y=True)
    assert source.classes == tuple("0123456789")
    seen = []
    for split in "train", "val":
        samples = source.splits[split]
        for i in range(len(samples)):
            sample = samples[i]
            number, label = sample.key.split("-")
            image = Image.open(io.BytesIO(sample.read()))
            assert (image.format, image.mode, image.size, sample.extension) == (
                "PNG",
                "L",
                (8, 8),
                "png",
            )
            expected = [round(v * 255 / 16) for v in pixels[int(number)]]
            assert list(np.asarray(image).ravel()) == expected
            assert sample.label == int(label) == targets[int(number)]
            seen.append(int(number))
    assert sorted(seen) == list(range(1797))


@pytest.mark.parametrize("val_fraction", [0.2, 0.5, 0.013])
def test_digits_split_has_the_same_share_of_every_class(val_fraction: float) -> None:
    source = digits(val_fraction, seed=3)
    labels = {
        split: Counter(samples[i].label for i in range(len(samples)))
        for split, samples in source.splits.items()
    }
    for label, num in enumerate([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]):
        assert labels["val"][label] == round(num * val_fraction)
        assert labels["train"][label] == num - labels["val"][label]


def test_digits_split_depends_on_the_seed_alone() -> None:
    def val_keys(seed: int) -> list[str]:
        val = digits(seed=seed).splits["val"]
        return [val[i].key for i in range(len(val))]

    assert val_keys(0) == val_keys(0) != val_keys(1)
    assert len(val_keys(0)) == 359
    assert digits(seed=0).facts != digits(seed=1).facts


def test_train_and_val_directories(tmp_path: Path) -> None:
    root = make(
        tmp_path / "my pets ü",
        "train/dog/b.JPEG", "train/dog/a.png", "train/dog/deep/er/c.WebP",
        "train/Cat/1.jpg", "train/çat/犬.2.gif", "val/dog/z.jpg", "val/Cat/y.tiff",
    )  # fmt: skip
    source = folder(root)
    assert source.classes == ("Cat", "dog", "çat")
    assert listed(source, "train") == [
        ("00000000-1", "jpg", 0, "train/Cat/1.jpg"),
        ("00000001-a", "png", 1, "train/dog/a.png"),
        ("00000002-b", "jpeg", 1, "train/dog/b.JPEG"),
        ("00000003-c", "webp", 1, "train/dog/deep/er/c.WebP"),
        ("00000004-__2", "gif", 2, "train/çat/犬.2.gif"),
    ]
    assert listed(source, "val") == [
        ("00000000-y", "tiff", 0, "val/Cat/y.tiff"),
        ("00000001-z", "jpg", 1, "val/dog/z.jpg"),
    ]
    assert source.splits["train"][0].origin == str(root / "train/Cat/1.jpg")


def test_test_stands_in_for_val(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "test/a/2.png")
    assert listed(folder(tmp_path), "val") == [("00000000-2", "png", 0, "test/a/2.png")]
    make(tmp_path, "val/a/3.png")
    assert listed(folder(tmp_path), "val") == [("00000000-3", "png", 0, "val/a/3.png")]


def test_chosen_fraction(tmp_path: Path) -> None:
    names = [f"{name}/{i:02d}.png" for name, num in (("a", 10), ("b", 25)) for i in range(num)]
    source = folder(make(tmp_path, *names), 0.2, seed=1)
    train, val = listed(source, "train"), listed(source, "val")
    assert Counter(label for _, _, label, _ in val) == {0: 2, 1: 5}
    everything = sorted(train + val)
    assert [name for _, _, _, name in everything] == names
    assert [int(key[:8]) for key, _, _, _ in everything] == list(range(35))
    assert train == sorted(train)
    assert listed(folder(tmp_path, 0.2, seed=1), "val") == val
    assert listed(folder(tmp_path, 0.2, seed=2), "val") != val


def test_keys_are_plain(tmp_path: Path) -> None:
    stems = ["x" * 200, "a.b.c", "sp ace", "naïve", "-", "..x", "%2e%2e", "new\nline"]
    make(tmp_path, *(f"train/a/{stem}.jpg" for stem in stems), "val/a/1.jpg")
    keys = [key for key, *_ in listed(folder(tmp_path), "train")]
    assert len(set(keys)) == len(stems) - 1  # "..x.jpg" is hidden
    assert all(re.fullmatch(r"\d{8}-[A-Za-z0-9_-]{1,60}", key) for key in keys)


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    make(
        tmp_path,
        "train/a/1.jpg", "train/a/notes.TXT", "train/a/more/x.txt", "train/a/README",
        "train/a/._1.jpg", "train/a/.cache/2.jpg", "train/.ipynb_checkpoints/3.jpg",
        "train/labels.csv", "val/a/1.jpg", "val/4.jpg",
    )  # fmt: skip
    source = folder(tmp_path)
    assert source.classes == ("a",)
    assert len(source.splits["train"]) == len(source.splits["val"]) == 1
    assert source.ignored == {
        ".txt": 2, "no extension": 1, "hidden": 2, "outside of classes": 2,
    }  # fmt: skip


def test_links(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train/a/1.jpg", "val/a/1.jpg")
    store = make(tmp_path / "store", "b/2.jpg", "3.jpg")
    (root / "train" / "b").symlink_to(store / "b")  # a class
    (root / "train" / "a" / "3.jpg").symlink_to(store / "3.jpg")  # an image
    (root / "train" / "a" / "loop").symlink_to(root / "train")
    source = folder(root)
    assert [text for *_, text in listed(source, "train")] == ["train/a/1.jpg", "3.jpg", "b/2.jpg"]
    assert source.ignored["linked directory"] == 1


def test_facts_identify_the_files_and_not_their_place(tmp_path: Path) -> None:
    names = ["train/a/1.jpg", "train/a/2.jpg", "val/a/3.jpg"]
    facts = folder(make(tmp_path / "here", *names)).facts
    assert facts == folder(make(tmp_path / "there", *names)).facts
    assert (facts["num_files"], facts["num_bytes"]) == (3, 13 + 13 + 11)
    renamed = ["train/a/1.jpg", "train/a/4.jpg", "val/a/3.jpg"]
    assert facts != folder(make(tmp_path / "renamed", *renamed)).facts
    moved = make(tmp_path / "moved", "train/a/1.jpg", "val/a/3.jpg", "val/a/2.jpg")
    assert facts != folder(moved).facts
    (tmp_path / "there/val/a/3.jpg").write_text("longer than before")
    assert facts != folder(tmp_path / "there").facts


def test_no_directory(tmp_path: Path) -> None:
    assert f"no directory at {tmp_path / 'x y'}" in refusal(tmp_path / "x y")
    make(tmp_path, "file")
    assert "no directory at" in refusal(tmp_path / "file")


def test_no_split_said(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, "a/1.jpg"))
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


def test_empty_class(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/x.txt", "val/a/2.jpg")
    assert f"the class b has no images in {tmp_path / 'train' / 'b'}" in refusal(tmp_path)
    make(tmp_path, "train/b/1.jpg")
    assert len(folder(tmp_path).splits["val"]) == 1  # val/ need not have every class
    (tmp_path / "val" / "b").mkdir()
    assert f"the class b has no images in {tmp_path / 'val' / 'b'}" in refusal(tmp_path)


def test_class_that_cannot_be_learned(tmp_path: Path) -> None:
    message = refusal(make(tmp_path, "train/a/1.jpg", "val/a/1.jpg", "val/dog/1.jpg"))
    assert f"{tmp_path / 'val'} has classes that train/ lacks: dog" in message


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_fraction_out_of_range(tmp_path: Path, val_fraction: float) -> None:
    make(tmp_path, "a/1.jpg", "a/2.jpg")
    assert f"fraction is {val_fraction}, and must be between 0 and 1" in refusal(
        tmp_path, val_fraction
    )


@pytest.mark.parametrize(("val_fraction", "in_val"), [(0.1, 1), (0.4, 1), (0.9, 2)])
def test_rare_classes_are_in_both_splits(tmp_path: Path, val_fraction: float, in_val: int) -> None:
    make(tmp_path, "one/1.jpg", *(f"three/{n}.jpg" for n in range(3)))
    make(tmp_path, *(f"many/{n}.jpg" for n in range(40)))
    source = folder(tmp_path, val_fraction)
    labels = Counter(label for _, _, label, _ in listed(source, "val"))
    assert labels == {0: round(40 * val_fraction), 2: in_val}
    assert len(source.splits["train"]) + len(source.splits["val"]) == 44
    rare = {"one"} if val_fraction == 0.4 else {"one", "three"}
    told = " ".join(source.notes)
    assert {name for name in source.classes if name in told} == rare


def test_no_class_can_be_split(tmp_path: Path) -> None:
    assert "no class has two images" in refusal(make(tmp_path, "a/1.jpg", "b/1.jpg"), 0.5)


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH103  Path takes no bytes
    assert "is not UTF-8" in refusal(tmp_path, 0.1)


def test_file_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gone.jpg").symlink_to("nowhere")
    message = refusal(tmp_path, 0.1)
    assert f"cannot list {tmp_path / 'a' / 'gone.jpg'}: No such file" in message
