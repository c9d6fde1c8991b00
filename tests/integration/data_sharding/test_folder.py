"""Every layout is listed as documented, and what cannot be used is refused with a reason."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import error_of, listed, make

from data_sharding.errors import DataError
from data_sharding.image.heif import can_read_heif
from data_sharding.sources.base import Sample, Samples
from data_sharding.sources.folder import FolderOptions, folder

ANY = FolderOptions(max_passed_over=1)
LIST_EACH = """
import sys
from data_sharding.errors import DataError
from data_sharding.sources.folder import folder
for directory in sys.argv[1:]:
    try:
        folder(directory, 0.5)
    except DataError as error:
        print(error.value)
"""


def each(samples: Samples) -> list[Sample]:
    return [samples[i] for i in range(len(samples))]


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


def test_other_names_of_formats(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jfif", "a/2.JPE", "a/3.mpo", "b/4.dib", "b/5.pbm", "b/6.jpeg")
    source = folder(tmp_path, 0.5)
    found = sorted(listed(source, "train") + listed(source, "val"))
    assert [extension for _, extension, _, _ in found] == ["jpg"] * 3 + ["bmp", "ppm", "jpeg"]


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
    make(tmp_path, *(f"train/a/{stem}.jpg" for stem in stems), "train/b/1.jpg", "val/a/1.jpg")
    keys = [key for key, *_ in listed(folder(tmp_path), "train")]
    assert len(set(keys)) == len(stems)  # "..x.jpg" is hidden, and there is b
    assert all(re.fullmatch(r"\d{8}-[A-Za-z0-9_-]{1,60}", key) for key in keys)


def test_skipped_files_are_counted(tmp_path: Path) -> None:
    make(
        tmp_path,
        "train/a/1.jpg", "train/a/notes.TXT", "train/a/more/x.txt", "train/a/README",
        "train/b/1.jpg",
        "train/a/._1.jpg", "train/a/.cache/2.jpg", "train/.ipynb_checkpoints/3.jpg",
        "train/a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "train/@eaDir/x.jpg",
        "__MACOSX/train/a/1.jpg",
        "train/a/deep/$RECYCLE.BIN/1.jpg", "train/labels.csv", "val/a/1.jpg", "val/4.jpg",
        "extra/a/5.jpg", "6.jpg", "train/a/Thumbs.db",
    )  # fmt: skip
    os.mkfifo(tmp_path / "train/a/pipe.jpg")
    source = folder(tmp_path, options=ANY)
    assert source.classes == ("a", "b")
    assert [len(source.splits[split]) for split in ("train", "val")] == [2, 1]
    assert source.skipped.counts == {
        ".txt": 2, "no extension": 1, "hidden": 3, "outside of classes": 1, ".csv": 1, ".db": 1,
        "left by other programs": 4, "beside the splits": 2, "neither file nor directory": 1,
    }  # fmt: skip
    assert source.skipped.names[".txt"] == ["train/a/more/x.txt", "train/a/notes.TXT"]
    assert source.skipped.names["beside the splits"] == ["6.jpg", "extra"]


def test_too_many_skipped_files_are_refused(tmp_path: Path) -> None:
    make(tmp_path, *(f"{name}/{n}.jpg" for name in "ab" for n in range(9)))
    make(tmp_path, "a/1.jxl", "b/2.JXL", *(f"a/{n}.txt" for n in range(99)))
    source = folder(tmp_path, 0.5)
    assert source.skipped.counts == {".jxl": 2, ".txt": 99}
    assert "djxl" in " ".join(source.notes)
    make(tmp_path, "a/3.jxl")
    error = error_of(tmp_path, 0.5)
    assert error.value == 3 / (18 + 3)
    assert "3 .jxl" in error.problem
    assert "djxl" in error.hint
    assert not source.warnings
    source = folder(tmp_path, 0.5, options=ANY)
    assert source.skipped.counts == {".jxl": 3, ".txt": 99}
    assert "14%" in source.warnings[0]


@pytest.mark.parametrize("name", ["1.heic", "2.HIF"])
def test_heic_is_listed_if_it_can_be_read(tmp_path: Path, name: str) -> None:
    make(tmp_path, f"train/a/{name}", "train/a/3.jpg", "train/b/4.jpg", "val/a/5.jpg")
    source = folder(tmp_path, options=ANY)
    if can_read_heif():
        assert (len(source.splits["train"]), source.skipped.counts.total()) == (3, 0)
    else:
        assert source.skipped.counts == {Path(name).suffix.lower(): 1}
        assert "pillow-heif" in " ".join(source.notes)
        (tmp_path / "train/a/3.jpg").unlink()
        assert "pillow-heif" in error_of(tmp_path).hint  # now the class is empty


def test_links_are_followed_or_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train/a/1.jpg", "val/a/1.jpg")
    store = make(tmp_path / "store", "b/2.jpg", "3.jpg", "more/4.jpg")
    (root / "train" / "b").symlink_to(store / "b")  # a class
    (root / "train" / "a" / "3.jpg").symlink_to(store / "3.jpg")  # an image
    (root / "train" / "a" / "loop").symlink_to(root / "train")
    (root / "train" / "a" / "more").symlink_to(store / "more")
    (root / "train" / "a" / "gone.jpg").symlink_to("nowhere")
    (root / "train" / "a" / "self.jpg").symlink_to("self.jpg")
    (root / "train" / "c").symlink_to("nowhere")
    (root / "train" / "up").symlink_to(root)
    source = folder(root, options=ANY)
    assert [text for *_, text in listed(source, "train")] == ["train/a/1.jpg", "3.jpg", "b/2.jpg"]
    loops = {"link to a parent directory": 2, "dead link": 3}
    assert source.skipped.counts == {"linked directory": 1, **loops}
    assert source.skipped.names["dead link"] == [
        "train/c", "train/a/gone.jpg", "train/a/self.jpg",
    ]  # fmt: skip
    assert source.skipped.names["linked directory"] == ["train/a/more"]
    source = folder(root, options=replace(ANY, follow_links=True))
    assert [text for *_, text in listed(source, "train")] == [
        "train/a/1.jpg", "3.jpg", "more/4.jpg", "b/2.jpg",
    ]  # fmt: skip
    assert source.skipped.counts == loops
    assert not source.findings.counts


def test_an_image_listed_again_through_a_link_is_reported(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "train/a/1.jpg", "train/b/2.jpg", "val/b/3.jpg")
    (root / "train/b/again.jpg").symlink_to("../a/1.jpg")
    (root / "train/b/more").symlink_to("../a")
    (root / "val/a").symlink_to("../train/a")
    findings = folder(root, options=replace(ANY, follow_links=True)).findings
    assert findings.names["linked_twice"] == [
        "train/b/again.jpg is train/a/1.jpg",
        "train/b/more/1.jpg is train/a/1.jpg",
        "val/a/1.jpg is train/a/1.jpg",
    ]


def test_the_fingerprint_depends_on_files_and_not_on_the_directory(tmp_path: Path) -> None:
    names = ["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg"]
    facts = folder(make(tmp_path / "here", *names)).fingerprint
    assert facts == folder(make(tmp_path / "there", *names)).fingerprint
    assert (facts["num_files"], facts["num_bytes"]) == (3, 13 + 13 + 11)
    renamed = ["train/a/1.jpg", "train/b/4.jpg", "val/a/3.jpg"]
    assert facts != folder(make(tmp_path / "renamed", *renamed)).fingerprint
    moved = make(tmp_path / "moved", "train/b/1.jpg", "train/a/2.jpg", "val/a/3.jpg")
    assert facts != folder(moved).fingerprint
    (tmp_path / "there/val/a/3.jpg").write_text("longer than before")
    assert facts != folder(tmp_path / "there").fingerprint


def test_empty_class(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/x.txt", "train/c/2.jpg", "val/a/2.jpg")
    assert error_of(tmp_path).value == str(tmp_path / "train" / "b")
    source = folder(tmp_path, options=FolderOptions(allow_empty=True))
    assert source.classes == ("a", "b", "c")
    assert [label for _, _, label, _ in listed(source, "train")] == [0, 2]
    assert "train/b" in " ".join(source.notes)
    make(tmp_path, "val/b/1.jpg")
    with pytest.raises(DataError) as caught:
        folder(tmp_path, options=FolderOptions(allow_empty=True))
    assert caught.value.value == "b"


def test_an_empty_class_of_val_alone(tmp_path: Path) -> None:
    """The classes are those of both splits, in one order."""
    make(tmp_path, "train/a/1.jpg", "train/c/2.jpg", "val/a/3.jpg", "val/c/4.jpg")
    (tmp_path / "val/b").mkdir()
    assert error_of(tmp_path).value == str(tmp_path / "val/b")
    source = folder(tmp_path, options=FolderOptions(allow_empty=True))
    assert source.classes == ("a", "b", "c")
    for split in ("train", "val"):
        assert [label for _, _, label, _ in listed(source, split)] == [0, 2]
    assert "val/b" in " ".join(source.notes)
    (tmp_path / "val/b").rmdir()
    (tmp_path / "val/c/4.jpg").unlink()
    (tmp_path / "val/c").rmdir()
    source = folder(tmp_path)
    assert source.classes == ("a", "c")
    assert "c" in source.notes[0]


def test_val_need_not_have_every_class(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/x.txt")
    source = folder(tmp_path)
    assert len(source.splits["val"]) == 1
    assert "val/b" in source.notes[0]
    (tmp_path / "val/a/2.jpg").unlink()
    assert error_of(tmp_path).value == "val"


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/dog/1.jpg")
    assert error_of(tmp_path).value == "dog"


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")])
def test_fraction_out_of_range(tmp_path: Path, val_fraction: float) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    assert repr(error_of(tmp_path, val_fraction).value) == repr(val_fraction)


@pytest.mark.parametrize(("val_fraction", "in_val"), [(0.1, 1), (0.4, 1), (0.9, 2)])
def test_rare_classes_are_in_both_splits(tmp_path: Path, val_fraction: float, in_val: int) -> None:
    make(tmp_path, "one/1.jpg", *(f"three/{n}.jpg" for n in range(3)))
    make(tmp_path, *(f"many/{n}.jpg" for n in range(40)))
    source = folder(tmp_path, val_fraction)
    labels = Counter(label for _, _, label, _ in listed(source, "val"))
    assert labels == {0: round(40 * val_fraction), 2: in_val}
    assert len(source.splits["train"]) + len(source.splits["val"]) == 44
    rare = {"one"} if val_fraction == 0.4 else {"one", "three"}
    named = {
        name
        for name in source.classes
        if any(f"({name}" in n or f", {name}" in n for n in source.notes)
    }
    assert named == rare


def test_no_class_can_be_split(tmp_path: Path) -> None:
    assert error_of(make(tmp_path, "a/1.jpg", "b/1.jpg"), 0.5).value == 0.5


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH103  Path takes no bytes
    assert "UTF-8" in error_of(tmp_path, 0.1).problem


def test_directory_that_may_not_be_listed(tmp_path: Path) -> None:
    make(tmp_path, "set/a/1.jpg", "set/b/1.jpg")
    (tmp_path / "set/a/deep").mkdir(mode=0)
    (tmp_path / "closed").mkdir(mode=0)
    command = [sys.executable, "-c", LIST_EACH, tmp_path / "set", tmp_path / "closed/set"]
    if os.geteuid() == 0:  # whom nothing is closed to, unless this is taken away
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    closed = [str(tmp_path / name) for name in ("set/a/deep", "closed/set")]
    assert done.stdout.splitlines() == closed


PLACES = st.sampled_from(
    ["train/a", "train/b", "train/b/deep", "train/@eaDir", "train/.x", "val/a", "val/b/@eaDir/c",
     "train", "val", ".", "extra/c", "lost+found", "train/a/.git/y"]
)  # fmt: skip
NAMES = st.sampled_from(
    ["1.jpg", "2.JPE", "3.heic", "x.txt", "README", ".hidden.jpg", "._1.jpg", "dead.jpg",
     "link.png", "Thumbs.db", "dir"]
)  # fmt: skip


@given(places=st.sets(st.tuples(PLACES, NAMES), max_size=30), follows=st.booleans())
@settings(max_examples=60)
def test_each_file_is_a_sample_or_in_a_count(
    tmp_path_factory: pytest.TempPathFactory, places: set[tuple[str, str]], follows: bool
) -> None:
    root = make(tmp_path_factory.mktemp("any"), "train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg")
    store = make(tmp_path_factory.mktemp("store"), "9.png", "dir/8.jpg", "dir/8.txt")
    for place, name in sorted(places):
        if name not in ("dead.jpg", "link.png", "dir"):
            make(root, f"{place}/{name}")
            continue
        (root / place).mkdir(parents=True, exist_ok=True)
        target = {"dead.jpg": store / "none", "link.png": store / "9.png", "dir": store / "dir"}
        (root / place / name).symlink_to(target[name])
    options = FolderOptions(follows, allow_empty=True, max_passed_over=1)
    try:
        source = folder(root, options=options)
    except DataError as error:
        assert error.value == "dir"  # noqa: PT017
        return
    samples = {source.name(sample) for split in source.splits.values() for sample in each(split)}
    assert sum(map(len, source.splits.values())) == len(samples)
    over = [name for names in source.skipped.names.values() for name in names]
    assert source.skipped.counts.total() == len(over)
    assert len(set(over)) == len(over)
    for directory, _, files in os.walk(root, followlinks=True):
        for file in files:
            path = (Path(directory) / file).relative_to(root)
            counted = [str(place) for place in (path, *path.parents) if str(place) in over]
            assert len(counted) == (str(path) not in samples), path
