"""A shard that is there twice is refused, under whatever name, and found by verify."""

import json
import shutil
from pathlib import Path

import pytest
from foreign_shards import by_webdataset, contents, index, labelled

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.shards import from_webdataset, merge, resplit
from data_sharding.tools.duplicate_shards import refuse_equal_urls
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.verify import COUNTED_TWICE, verify

CLS, HALF = SampleRule(), 0.5


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    return by_webdataset(tmp_path / "in/a.tar", labelled([0, 1] * 3))


@pytest.fixture
def reading(tmp_path: Path) -> ReadOptions:
    return ReadOptions(tmp_path)


@pytest.mark.parametrize("other", ["in/a.tar", "./in/../in/a.tar", "link.tar", "copy.tar"])
@pytest.mark.parametrize("is_val", [False, True])
def test_a_tar_given_twice_is_refused(
    tmp_path: Path, tar: Path, reading: ReadOptions, other: str, is_val: bool
) -> None:
    (tmp_path / "link.tar").symlink_to(tar)
    shutil.copy(tar, tmp_path / "copy.tar")
    urls = [str(tar), f"{tmp_path}/{other}"]
    train, val = (urls[:1], urls[1:]) if is_val else (urls, [])
    with pytest.raises(DataError, match="twice") as caught:
        from_webdataset(train, CLS, reading, val_urls=val, val_fraction=None if is_val else HALF)
    assert all(url in str(caught.value) for url in urls)


def test_equal_remote_urls_are_refused() -> None:
    refuse_equal_urls(["memory://a/b", "memory://a/c", "s3://bucket/x"], "shard")
    with pytest.raises(DataError) as caught:
        refuse_equal_urls(["s3://bucket/x", "s3://bucket/y", "s3://bucket/x/"], "data set")
    assert caught.value.value == "s3://bucket/x/"
    with pytest.raises(DataError, match="nope://x"):
        refuse_equal_urls(["nope://x"], "data set")


def test_merging_a_set_with_itself_is_refused(
    tmp_path: Path, reading: ReadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, first in ("A", 0), ("B", 50):
        by_webdataset(tmp_path / name / "train/a.tar", labelled([0, 1], first=first))
        by_webdataset(tmp_path / name / "val/a.tar", labelled([0, 1], first=first + 9))
        index(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for urls in ["A", "A"], ["A", "./A"], ["A", "B", f"{tmp_path}/A/"]:
        with pytest.raises(DataError) as caught:
            merge(urls, reading)
        assert caught.value.value == urls[-1]
    assert len(merge(["A", "B"], reading).splits["train"]) == 4
    shutil.copy("A/val/a.tar", "B/train/b.tar")
    index(tmp_path / "B")
    with pytest.raises(DataError, match="same bytes"):
        merge(["A", "B"], reading)


def test_a_shard_in_both_splits(tmp_path: Path, reading: ReadOptions) -> None:
    root = tmp_path / "set"
    for name, first in ("train", 0), ("val", 50):
        by_webdataset(root / f"{name}/{name}.tar", labelled([0, 1] * 2, first=first))
    index(root)
    (root / "train/again.tar").symlink_to(root / "val/val.tar")
    before = contents(root)
    for split in None, "train":
        with pytest.raises(DataError) as caught:
            index(root, split)
        assert caught.value.value in ("again.tar", "val.tar")
    assert contents(root) == before
    manifest = root / "train/manifest.json"
    values = json.loads(manifest.read_text())
    of_val = json.loads((root / "val/manifest.json").read_text())["shards"][0]
    values["shards"].append({**of_val, "name": "again.tar"})
    manifest.write_text(json.dumps(values))
    (problem,) = verify(str(root)).problems
    assert {problem.shard, problem.fix} <= {"again.tar", "val.tar", COUNTED_TWICE}
    with pytest.raises(DataError, match="same bytes"):
        resplit(str(root), None, reading, val_fraction=HALF)
    index(root, "train", "train*")  # as the message says
    assert verify(str(root)).problems == ()


def test_flat_shards_of_the_other_split_are_not_taken(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "in1k-train-00.tar", labelled([0, 1]))
    by_webdataset(tmp_path / "in1k-validation-00.tar", labelled([1, 0], first=9))
    by_webdataset(tmp_path / "latest-valley.tar", labelled([1, 0], first=19))
    for split, named in ("train", "in1k-validation-00.tar"), ("val", "in1k-train-00.tar"):
        with pytest.raises(DataError) as caught:
            find_shards(str(tmp_path), split)
        assert caught.value.value == [named]
        assert f"*{split}*" in caught.value.hint
    (tmp_path / "in1k-train-00.tar").unlink()
    (tmp_path / "latest-valley.tar").unlink()
    index(tmp_path, "train")  # all there is: nothing is mixed
    assert read_manifest(str(tmp_path), "train").num_samples == 2
