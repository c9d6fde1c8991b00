"""The same tools on an object store: each shard is read once, and copies are gone afterwards."""

import json
from collections import Counter
from pathlib import Path

import pytest
from cli_runner import Tahoe
from foreign_shards import by_webdataset, index, labelled
from fsspec.config import conf
from s3_server import S3

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io import filesystem
from data_sharding.scanning.scan import COPY_AGAIN, ReadOptions
from data_sharding.sources.shards import from_webdataset, merge
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import classes_of_other_split, index_shards, write_manifests
from data_sharding.tools.preview import preview
from data_sharding.tools.stats import measure
from data_sharding.tools.verify import verify

CLS = SampleRule()


@pytest.fixture
def s3(s3_server: S3) -> S3:
    s3_server.fail()  # no longer
    return s3_server


@pytest.fixture
def local(tmp_path: Path) -> Path:
    for number in range(3):
        labels = [0, 1, 2, 1]
        by_webdataset(tmp_path / f"in/train/{number}.tar", labelled(labels, first=10 * number))
    by_webdataset(tmp_path / "in/val/9.tar", labelled([0, 1, 2], first=90))
    return tmp_path / "in"


@pytest.fixture
def remote(s3: S3, local: Path) -> str:
    """The same shards on the object store, with manifests."""
    url = s3.url(local.parent.name, "set of others")
    s3.put(url, local)
    index(url)
    s3.forget()
    return url


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def test_index(remote: str, local: Path) -> None:
    index(str(local))
    for split in "train", "val":
        there, here = (read_manifest(url, split) for url in (remote, str(local)))
        assert there == here
        assert there.fingerprint == here.fingerprint


def test_each_shard_is_read_once(s3: S3, remote: str, scratch: Path) -> None:
    found = verify(remote, ReadOptions(scratch))
    assert found.problems == ()
    tars = Counter({k: n for k, n in s3.downloads().items() if k.endswith(".tar")})
    assert tars == Counter(["0.tar", "1.tar", "2.tar", "9.tar"])
    assert list(scratch.iterdir()) == []


def test_missing_and_damaged(s3: S3, remote: str) -> None:
    filesystem.remove(filesystem.join(remote, "train", "1.tar"))
    data = filesystem.read_bytes(filesystem.join(remote, "train", "2.tar"))
    filesystem.write_bytes(filesystem.join(remote, "train", "2.tar"), data[:6000])
    found = verify(remote).problems
    whole = [(p.shard, p.message, p.fix) for p in found if not p.key][:2]
    assert whole == [
        ("1.tar", "is missing", COPY_AGAIN),
        ("2.tar", f"is truncated: 6,000 of {len(data):,} bytes", COPY_AGAIN),
    ]
    with pytest.raises(DataError) as caught:
        measure(remote, "train", read_manifest(remote, "train"), num_measured=1)
    assert caught.value.value == f"{remote}/train/1.tar"


def test_stats_and_preview(remote: str, local: Path, scratch: Path) -> None:
    index(str(local))
    manifest = read_manifest(remote, "train")
    there, here = (measure(url, "train", manifest, num_measured=5) for url in (remote, str(local)))
    assert (there.mean, there.widths) == (here.mean, here.widths)
    sheets = [
        preview(remote, "train", manifest, num=3, seed=seed, scratch=str(scratch))
        for seed in (None, 0)
    ]
    assert sheets[0].size == sheets[1].size
    filesystem.remove(filesystem.join(remote, "train", "0.tar"))
    with pytest.raises(DataError) as caught:
        preview(remote, "train", manifest, num=3, seed=None, scratch=str(scratch))
    assert caught.value.value == f"{remote}/train/0.tar"
    assert list(scratch.iterdir()) == []


def test_new_sets_from_remote_shards(remote: str, local: Path, scratch: Path) -> None:
    reading = ReadOptions(scratch, num_workers=1)
    val = 0.5
    pattern = filesystem.join(remote, "train", "*.tar")
    there = from_webdataset([pattern], CLS, reading, val_fraction=val)
    here = from_webdataset([str(local / "train")], CLS, reading, val_fraction=val)
    assert there.fingerprint == here.fingerprint
    for split in "train", "val":
        for i in range(len(there.splits[split])):
            one, other = there.splits[split][i], here.splits[split][i]
            assert (one.key, one.label, one.read()) == (other.key, other.label, other.read())
    assert len(list(scratch.iterdir())) == 3
    merged = merge([remote], reading)
    assert (len(merged.splits["train"]), len(merged.splits["val"])) == (12, 3)


def test_in_processes(s3: S3, remote: str, tahoe: Tahoe) -> None:
    filesystem.remove(filesystem.join(remote, "train", "1.tar"))
    found = tahoe("shard", "verify", remote, "--json", "--num-workers", "2", check=False)
    assert found.returncode == 1, found.stderr
    assert [p["shard"] for p in json.loads(found.stdout)["problems"]] == ["1.tar"]


def test_nothing_there(s3: S3) -> None:
    with pytest.raises(DataError) as caught:
        find_shards(s3.url("none"), None)
    assert caught.value.value == s3.url("none")


OUT_OF_REACH = {
    "endpoint_url": "http://127.0.0.1:1",
    "key": "none",
    "secret": "none",
    "config_kwargs": {"retries": {"max_attempts": 0}},
}


def test_an_unreachable_store_is_a_data_error(
    scratch: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(conf, "s3", OUT_OF_REACH)
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    found = find_shards(str(local), None)
    manifests, _ = index_shards(found, CLS)
    reading = ReadOptions(scratch)
    half = 0.5
    for call in (
        lambda: from_webdataset(["s3://bucket/none-*.tar"], CLS, reading, val_fraction=half),
        lambda: from_webdataset(["s3://bucket/none"], CLS, reading, val_fraction=half),
        lambda: from_webdataset(["s3://bucket/none.tar"], CLS, reading, val_fraction=half),
        lambda: merge(["s3://bucket/none", "s3://bucket/another"], reading),
        lambda: find_shards("s3://bucket/none", None),
        lambda: write_manifests("s3://bucket/none", found, manifests, force=False),
        lambda: classes_of_other_split("s3://bucket/none", {"train": found["train"]}),
        lambda: verify("s3://bucket/none"),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.value.startswith("s3://bucket/none")
        assert "credentials" in caught.value.hint
