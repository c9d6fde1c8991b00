"""Data sets made of shards: every sample arrives once, with its bytes and its class."""

import gc
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset as plain_webdataset
from foreign_shards import by_gnu_tar, by_webdataset, contents, jpeg, labelled, png

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.base import Source
from data_sharding.sources.shards import from_webdataset, merge, resplit
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards, write_manifests
from data_sharding.writing.dataset_writer import write_dataset

CLS, TXT = SampleRule(), SampleRule(LabelRule(extension="txt"))
HALF = 0.5


@pytest.fixture
def reading(tmp_path: Path) -> ReadOptions:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return ReadOptions(scratch)


def write(source: Source, out: Path, seed: int = 0, samples_per_shard: int = 5) -> Path:
    write_dataset(source, str(out), seed=seed, samples_per_shard=samples_per_shard)
    return out


def read(root: Path, split: str) -> Counter[tuple[bytes, str]]:
    """Return the images of a split with the names of their classes, as plain webdataset sees it."""
    classes = read_manifest(str(root), split).classes
    paths = sorted(str(path) for path in (root / split).glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(plain_webdataset.WebDataset(paths, shardshuffle=False))
        gc.collect()
    return Counter((s.get("jpg", s.get("png")), classes[int(s["cls"])]) for s in samples)


def keys(root: Path, split: str) -> list[str]:
    paths = sorted(str(path) for path in (root / split).glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = [s["__key__"] for s in plain_webdataset.WebDataset(paths, shardshuffle=False)]
        gc.collect()
    return found


def index(root: Path, rule: SampleRule = CLS, classes: Sequence[str] | None = None) -> Path:
    found = find_shards(str(root), None)
    manifests, _ = index_shards(found, rule, classes=classes)
    write_manifests(str(root), found, manifests, force=True)
    return root


def error_of(call: Any, *arguments: Any, **settings: Any) -> DataError:
    """Return the error of a call."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **settings)
    return caught.value


@pytest.mark.slow
def test_foreign_shards_are_resharded(tmp_path: Path, reading: ReadOptions) -> None:
    names = ["cat", "dog", "犬"] * 4
    by_webdataset(tmp_path / "in/a.tar", labelled(names, "txt"))
    by_gnu_tar(tmp_path / "in/b.tar", labelled(names, "txt", first=50))
    before = contents(tmp_path / "in")
    source = from_webdataset([str(tmp_path / "in")], TXT, reading, val_fraction=HALF)
    out = write(source, tmp_path / "out")
    expected = Counter((jpeg(first + i), name) for first in (0, 50) for i, name in enumerate(names))
    assert read(out, "train") + read(out, "val") == expected
    for split in "train", "val":
        assert Counter(name for _, name in read(out, split).elements()) == {
            "cat": 4, "dog": 4, "犬": 4,
        }  # fmt: skip
        assert all(re.fullmatch(r"\d{8}-\d{4}", key) for key in keys(out, split))
        assert len(set(keys(out, split))) == 12
    assert contents(tmp_path / "in") == before


def test_equal_input_gives_equal_bytes(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "in/a.tar", labelled([0, 1] * 10))

    def out(name: str, seed: int = 0, val_seed: int = 0) -> dict[str, str]:
        source = from_webdataset(
            [str(tmp_path / "in")], CLS, reading, val_fraction=0.5, seed=val_seed
        )
        return contents(write(source, tmp_path / name, seed))

    first = out("1")
    assert out("2") == first
    assert out("3", seed=1) != first
    assert out("4", val_seed=1) != first
    assert read(tmp_path / "4", "val") != read(tmp_path / "1", "val")


def test_keys_are_unique_where_shards_repeat_them(tmp_path: Path, reading: ReadOptions) -> None:
    for name in "a", "b":
        by_webdataset(tmp_path / f"in/{name}.tar", labelled([0, 0, 1, 1]))
    source = from_webdataset([str(tmp_path / "in")], CLS, reading, val_fraction=HALF)
    for samples in source.splits.values():
        assert len({samples[i].key for i in range(len(samples))}) == 4


def test_a_source_can_be_sent_to_other_processes(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "in/a.tar", labelled([0, 1] * 3))
    source = from_webdataset([str(tmp_path / "in")], CLS, reading, val_fraction=HALF)
    copy = pickle.loads(pickle.dumps(source))
    for split, samples in source.splits.items():
        for i in range(len(samples)):
            one, other = samples[i], copy.splits[split][i]
            assert (one.key, one.label, one.read()) == (other.key, other.label, other.read())


def test_patterns_splits_and_extensions(tmp_path: Path, reading: ReadOptions) -> None:
    for number in range(3):
        by_webdataset(tmp_path / f"in/t-{number}.tar", labelled([0, 1], first=2 * number))
    by_webdataset(tmp_path / "in/v.tar", {"a/b c": {"jpg": png(1), "cls": b"1"}})
    patterns = [
        str(tmp_path / "in/t-{0..1}.tar"),
        str(tmp_path / "in/t-[2].tar").replace("[2]", "?"),
    ]
    source = from_webdataset(patterns[:1], CLS, reading, val_urls=[str(tmp_path / "in/v.tar")])
    assert (len(source.splits["train"]), len(source.splits["val"])) == (4, 1)
    sample = source.splits["val"][0]
    assert (sample.key, sample.extension) == ("00000000-b_c", "png")  # by content; it was .jpg
    source = from_webdataset(patterns[1:], CLS, reading, val_fraction=HALF)
    assert sum(map(len, source.splits.values())) == 6
    pattern = str(tmp_path / "*.tar")
    assert error_of(from_webdataset, [pattern], CLS, reading, val_fraction=HALF).value == pattern


def test_validation_samples_are_given_or_chosen(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "in/train/a.tar", labelled([0, 1] * 3))
    url = str(tmp_path / "in")
    assert "`val_fraction`" in error_of(from_webdataset, [url], CLS, reading).hint
    by_webdataset(tmp_path / "in/val/a.tar", labelled([0, 1]))
    assert error_of(from_webdataset, [url], CLS, reading, val_fraction=HALF).value == HALF
    assert len(from_webdataset([url], CLS, reading).splits["val"]) == 2
    assert (
        error_of(from_webdataset, [url + "x"], CLS, reading, val_fraction=HALF).value == url + "x"
    )


def test_a_missing_shard_is_named(tmp_path: Path, reading: ReadOptions) -> None:
    error = error_of(from_webdataset, [str(tmp_path / "none.tar")], CLS, reading, val_fraction=HALF)
    assert "none.tar" in str(error)


@pytest.mark.slow
def test_a_split_is_stratified_and_chosen_from_all(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "in/train/a.tar", labelled([0] * 20 + [1] * 10))
    by_webdataset(tmp_path / "in/val/a.tar", labelled([0, 1] * 5, first=50))
    url = str(index(tmp_path / "in"))
    everything = read(Path(url), "train") + read(Path(url), "val")
    out = write(resplit(url, None, reading, val_fraction=0.2, seed=7), tmp_path / "out")
    assert read(out, "train") + read(out, "val") == everything
    assert Counter(name for _, name in read(out, "val").elements()) == {"0": 5, "1": 3}
    out = write(resplit(url, "train", reading, val_fraction=0.2, seed=7), tmp_path / "out2")
    assert read(out, "train") + read(out, "val") == read(Path(url), "train")
    source = resplit(url, None, reading, val_fraction=0.01, seed=7)
    assert [len(source.splits[split]) for split in ("train", "val")] == [38, 2]
    assert "0, 1" in source.notes[0]
    assert error_of(resplit, url, None, reading, val_fraction=1.5, seed=7).value == 1.5


def test_a_set_that_has_only_train_is_split(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "in/train/a.tar", labelled([0, 2] * 4))  # class 1 has no samples
    url = str(index(tmp_path / "in"))
    out = write(resplit(url, None, reading, val_fraction=HALF), tmp_path / "out")
    assert Counter(name for _, name in read(out, "val").elements()) == {"0": 2, "2": 2}
    assert read_manifest(str(out), "val").classes == ("0", "1", "2")


@pytest.mark.slow
def test_sets_of_equal_classes_are_merged(tmp_path: Path, reading: ReadOptions) -> None:
    urls = []
    for number, first in enumerate((0, 100)):
        root = tmp_path / f"in{number}"
        by_webdataset(root / "train/a.tar", labelled([0, 1, 1], first=first))
        by_webdataset(root / "val/a.tar", labelled([1, 0], first=first + 50))
        urls.append(str(index(root, classes=["a", "b"])))
    out = write(merge(urls, reading), tmp_path / "out")
    for split in "train", "val":
        assert read(out, split) == read(Path(urls[0]), split) + read(Path(urls[1]), split)
        assert len(set(keys(out, split))) == len(keys(out, split))


def test_labels_follow_the_names_of_classes(tmp_path: Path, reading: ReadOptions) -> None:
    classes = {"one": ["cat", "dog"], "two": ["犬", "dog", "cat"]}
    for number, (name, names) in enumerate(classes.items()):
        for split, first in ("train", 0), ("val", 50):
            labels = [i % len(names) for i in range(6)]
            by_webdataset(
                tmp_path / name / split / "a.tar", labelled(labels, first=100 * number + first)
            )
        index(tmp_path / name, classes=names)
    urls = [str(tmp_path / name) for name in classes]
    assert "('犬')" in error_of(merge, urls, reading).problem
    out = write(merge(urls, reading, union_classes=True), tmp_path / "out")
    assert read_manifest(str(out), "train").classes == ("cat", "dog", "犬")
    for split in "train", "val":
        assert read(out, split) == read(Path(urls[0]), split) + read(Path(urls[1]), split)


def test_several_labels_and_none(tmp_path: Path, reading: ReadOptions) -> None:
    lists = [[0, 2], [], [1], [2, 1]] * 2
    by_webdataset(tmp_path / "several/a.tar", labelled([{"t": x} for x in lists], "json"))
    rule = SampleRule(LabelRule("multi", "json", "t"))
    source = from_webdataset([str(tmp_path / "several")], rule, reading, val_fraction=HALF)
    out = write(source, tmp_path / "out several")
    found = []
    for split in "train", "val":
        manifest = read_manifest(str(out), split)
        assert manifest.classes == ("0", "1", "2")
        with open_split(out, split) as reader:
            for i in range(len(reader)):
                labels = manifest.parse_labels(reader.label_bytes(i))
                found.append((bytes(reader.image(i)), labels))
    assert sorted(found) == sorted((jpeg(i), tuple(x)) for i, x in enumerate(lists))

    by_webdataset(tmp_path / "none/a.tar", {str(i): {"jpg": jpeg(i)} for i in range(4)})
    none = SampleRule(LabelRule("none"))
    source = from_webdataset([str(tmp_path / "none")], none, reading, val_fraction=HALF)
    assert source.splits["train"][0].label is None
    out = write(source, tmp_path / "out none")
    images = []
    for split in "train", "val":
        with open_split(out, split) as reader:
            images += [bytes(reader.image(i)) for i in range(len(reader))]
    assert sorted(images) == sorted(jpeg(i) for i in range(4))


def open_split(root: Path, split: str) -> ShardReader:
    manifest = read_manifest(str(root), split)
    return ShardReader(root / split / manifest.shards[0].name, rule=manifest.rule)


def test_equal_bytes_from_any_number_of_processes(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "in/a.tar", labelled([0, 1] * 10))
    by_webdataset(tmp_path / "in/b.tar", labelled([0, 1] * 10))
    outs = []
    for num_workers in 1, 2:
        many = replace(reading, num_workers=num_workers)
        source = from_webdataset([str(tmp_path / "in")], CLS, many, val_fraction=HALF)
        out = tmp_path / f"out{num_workers}"
        write_dataset(source, str(out), seed=0, samples_per_shard=6, num_workers=num_workers)
        outs.append(contents(out))
    assert outs[0] == outs[1]


def test_labels_with_changed_meanings_make_another_set(
    tmp_path: Path, reading: ReadOptions
) -> None:
    for name in "one", "two":
        for split in "train", "val":
            samples = labelled([0, 1] * 3, first=len(name + split) + 100 * (name == "two"))
            by_webdataset(tmp_path / name / split / "a.tar", samples)
    one = str(index(tmp_path / "one", classes=["cat", "dog"]))
    two = str(index(tmp_path / "two", classes=["dog", "cat"]))
    write(merge([one, two], reading, union_classes=True), tmp_path / "merged")
    write(resplit(two, "train", reading, val_fraction=HALF), tmp_path / "split")
    index(tmp_path / "two", classes=["cat", "dog"])
    again = merge([one, two], reading, union_classes=True)
    assert "classes_of_sets_sha256" in str(error_of(write, again, tmp_path / "merged"))
    resplit_again = resplit(two, "train", reading, val_fraction=HALF)
    assert "classes" in error_of(write, resplit_again, tmp_path / "split").problem


def test_incompatible_sets_are_not_merged(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "a/train/a.tar", labelled([0, 1]))
    by_webdataset(tmp_path / "b/train/a.tar", labelled(["0", "1"], "txt"))
    one, other = str(index(tmp_path / "a")), str(index(tmp_path / "b", TXT))
    assert "single txt" in error_of(merge, [one, other], reading).problem
    assert error_of(merge, [one], reading).value == "val"


def test_shards_must_be_what_their_manifest_says(tmp_path: Path, reading: ReadOptions) -> None:
    by_webdataset(tmp_path / "a/train/a.tar", labelled([0, 1] * 4))
    url = str(index(tmp_path / "a"))
    by_webdataset(tmp_path / "a/train/a.tar", labelled([0, 1] * 4, first=3))
    assert "`verify`" in error_of(resplit, url, None, reading, val_fraction=HALF).hint
