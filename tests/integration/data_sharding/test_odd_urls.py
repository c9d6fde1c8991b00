"""Names that fsspec takes for patterns or chains are names like any other, or refused."""

from pathlib import Path

import pytest
from foreign_shards import by_webdataset, jpeg, labelled
from s3_server import S3

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io import filesystem
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.base import Sample, Source
from data_sharding.sources.folder import folder
from data_sharding.sources.shards import from_webdataset, merge
from data_sharding.tools.find_shards import find_shards
from data_sharding.writing.dataset_writer import write_dataset
from data_sharding.writing.journal import open_journal, remove
from data_sharding.writing.shard_writer import ImageChecks

_SAMPLES = [Sample("a", "jpg", 0, "a", lambda: b"bytes")]
SOURCE = Source(("x",), {"train": _SAMPLES, "val": _SAMPLES}, {})


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty place."""
    if request.param == "s3":
        s3: S3 = request.getfixturevalue("s3_server")
        s3.fail()  # no longer
        return s3.url(tmp_path.name)
    return f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path)


def test_a_place_with_a_pattern_for_a_name_has_a_journal(root: str) -> None:
    journals = {}
    for name in ("a 1", "aXb", "a [1]", "a*b"):
        journals[name] = open_journal(filesystem.join(root, name), {}, None)
        journals[name].add("train-[0]", {"name": name})
    for name in ("a [1]", "a*b"):
        assert journals[name].read() == {"train-[0]": {"name": name}}
        remove(filesystem.join(root, name))
        assert journals[name].read() == {}
    for name in ("a 1", "aXb"):
        assert journals[name].read() == {"train-[0]": {"name": name}}


def test_a_write_that_was_stopped_is_taken_up_there(tmp_path: Path) -> None:
    for number in range(4):
        image = tmp_path / f"[in]/{('train', 'val')[number // 2]}/{'ab'[number % 2]}/{number}.jpg"
        image.parent.mkdir(parents=True)
        image.write_bytes(jpeg(number) if number else b"broken")
    out = tmp_path / "a [1]"
    write = lambda share: write_dataset(  # noqa: E731
        folder(tmp_path / "[in]"), str(out), seed=0, samples_per_shard=1, checks=ImageChecks(share)
    )
    with pytest.raises(DataError, match="are corrupt"):
        write(0)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("val/*.tar")}
    assert len(kept) == 2
    assert write(1).report
    assert {path: path.stat().st_mtime_ns for path in out.glob("val/*.tar")} == kept


@pytest.mark.parametrize("url", ["{}/a::b", "zip://a::{}/b.zip", "memory://{}/a::b", "::{}/b"])
def test_one_place_within_another_is_refused(tmp_path: Path, url: str) -> None:
    url = url.format(tmp_path)
    for call in (
        lambda: write_dataset(SOURCE, url, seed=0, samples_per_shard=1),
        lambda: find_shards(url, None),
        lambda: read_manifest(url, "train"),
        lambda: merge([url], ReadOptions(tmp_path)),
    ):
        with pytest.raises(DataError, match="without '::'"):
            call()
    assert not list(tmp_path.iterdir())


def test_a_store_that_passes_on_is_a_store(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    write_dataset(SOURCE, f"simplecache::{url}", seed=0, samples_per_shard=1)
    assert read_manifest(url, "val") == read_manifest(f"simplecache::{url}", "val")


def test_only_stars_and_question_marks_are_patterns_of_shards(tmp_path: Path) -> None:
    for num, name in enumerate(("val", "a [1]", "a 1", "b*", "bc"), start=1):
        by_webdataset(tmp_path / name / "x.tar", labelled([0] * num, first=10 * num))
    for pattern, num in (("a [1]/*.tar", 2), ("b*/x.tar", 4), ("a*/?.tar", 5)):
        urls, val = [str(tmp_path / pattern)], [str(tmp_path / "val")]
        source = from_webdataset(urls, SampleRule(), ReadOptions(tmp_path), val_urls=val)
        assert len(source.splits["train"]) == num, pattern
