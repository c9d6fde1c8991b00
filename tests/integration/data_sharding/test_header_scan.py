"""Shards are read by their headers as they are read whole, and an index goes on where it ended."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import http_server
import hub_server
import numpy as np
import pytest
from foreign_shards import by_gnu_tar, by_webdataset, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import S3, make_shards

from data_sharding.errors import DataError
from data_sharding.format.class_map import read_class_map
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_digest import file_sha256
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.io.download import DownloadSettings
from data_sharding.io.node_files import user_directory
from data_sharding.scanning import header_scan
from data_sharding.scanning.foreign_counts import find_counts
from data_sharding.scanning.resumable_scan import Record, ScanRecords, scan_resumably
from data_sharding.scanning.scan import ReadOptions, Scan
from data_sharding.storage.ranged_file import RangedFile
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import forget_scans, index_shards, write_manifests
from data_sharding.tools.verify import verify

CLS = SampleRule()
HEADERS = ReadOptions(what="headers")


@pytest.fixture
def s3(s3_server: S3) -> S3:
    s3_server.fail()
    return s3_server


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return user_directory("scans")


def without_place(scan: Scan) -> dict[str, object]:
    values = {**vars(scan), "url": scan.name, "path": "", "sha256": ""}
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


# ---------------------------------------------------------------- a file of ranges


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300_000), st.integers(0, 9999))
def test_slices_and_reads_are_those_of_the_bytes(size: int, seed: int) -> None:
    rng = random.Random(seed)
    data = rng.randbytes(size)
    fsspec.filesystem("memory").pipe_file("/ranged", data)
    file = RangedFile("memory://ranged", size, DownloadSettings())
    for _ in range(30):
        start, num_bytes = rng.randrange(size + 9), rng.choice([0, 1, 512, 20_000])
        assert file[start : start + num_bytes] == data[start : start + num_bytes]
        file.seek(start)
        assert file.read(num_bytes) == data[start : start + num_bytes]
        assert file.tell() == start + len(data[start : start + num_bytes])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_sharding.storage.ranged_file._MAX_KEPT_BYTES", 100_000)
    data = random.Random(0).randbytes(3_000_000)
    fsspec.filesystem("memory").pipe_file("/ranged", data)
    file = RangedFile("memory://ranged", len(data), DownloadSettings())
    for _ in range(2):
        for start in range(0, len(data), 100_000):
            assert file[start : start + 512] == data[start : start + 512]
            assert sum(map(len, file._windows.values())) <= 100_000


# ---------------------------------------------------------------- headers instead of all bytes


@pytest.mark.parametrize("pack", [by_webdataset, pytest.param(by_gnu_tar, marks=pytest.mark.slow)])
def test_headers_give_what_whole_shards_give(
    s3: S3, tmp_path: Path, pack: Callable[..., Path]
) -> None:
    long = {"d/" + "x" * 120: {"jpg": b"", "cls": b"1"}}  # a PAX or GNU header
    samples = [{**labelled([0, 2, 1], first=first), **long} for first in (0, 10)]
    paths = [pack(tmp_path / f"in/{n}.tar", samples[n]) for n in range(2)]
    s3.put(s3.url(tmp_path.name), tmp_path / "in")
    urls = [s3.url(tmp_path.name, path.name) for path in paths]
    whole = scan_resumably([str(path) for path in paths], CLS, ReadOptions())
    for found in (
        scan_resumably([str(path) for path in paths], CLS, HEADERS),
        scan_resumably(urls, CLS, HEADERS),
        scan_resumably(urls, CLS, ReadOptions()),
    ):
        assert [*map(without_place, found)] == [*map(without_place, whole)]


@pytest.mark.slow
def test_images_are_not_read(s3: S3, tmp_path: Path) -> None:
    infos = make_shards(tmp_path / "in/train", 2, 20, 100_000)
    s3.put(s3.url("large images"), tmp_path / "in")
    s3.forget()
    url = s3.url("large images")
    shards = find_shards(url, "train")
    manifests, counts = index_shards(shards, CLS, HEADERS)
    fetched = sum(r["stop"] - r["start"] for r in s3.requests() if r["method"] == "GET")
    assert fetched < 0.4 * sum(shard.num_bytes for shard in infos)
    assert counts["train"].total() == 40
    write_manifests(url, shards, manifests, force=False)
    table = read_manifest(url, "train").shards
    assert {shard.digest for shard in table} == {"headers"}
    assert [(s.num_samples, s.num_bytes) for s in table] == [
        (s.num_samples, s.num_bytes) for s in infos
    ]
    local = find_shards(str(tmp_path / "in"), "train")
    assert index_shards(local, CLS, HEADERS)[0]["train"].fingerprint == (
        manifests["train"].fingerprint  # wherever the shards are
    )


def test_a_changed_label_is_another_digest(tmp_path: Path) -> None:
    (shard,) = make_shards(tmp_path / "train", 1, 9, 40_000)
    shards, path = find_shards(str(tmp_path), "train"), tmp_path / "train" / shard.name
    write_manifests(str(tmp_path), shards, index_shards(shards, CLS, HEADERS)[0], force=False)
    assert verify(str(tmp_path), decode=False).problems == ()
    data = path.read_bytes()
    with ShardReader(path) as reader:
        place = data.index(bytes(reader.label_bytes(2)), reader.ranges[2][0] + 512)
    assert place > 80_000
    path.write_bytes(data[:place] + b"6" + data[place + 1 :])
    with path.open("rb") as file, ShardReader(path) as reader:
        assert reader.label_bytes(2) == b"6"
        sampled = file_sha256(file, "sampled")
    assert sampled == scan_resumably([str(path)], CLS, HEADERS)[0].sampled_sha256
    forget_scans(shards, CLS)
    with pytest.raises(DataError, match="digests differ"):
        write_manifests(str(tmp_path), shards, index_shards(shards, CLS, HEADERS)[0], force=False)
    (problem,) = verify(str(tmp_path), decode=False).problems
    assert problem.shard == shard.name


def test_a_digest_covers_the_labels_that_a_class_map_leaves_out(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0, 1, 2]))
    (tmp_path / "map.txt").write_text("2\n")
    shards, chosen = find_shards(str(tmp_path), "train"), read_class_map(f"{tmp_path}/map.txt")
    every = index_shards(shards, CLS, HEADERS)[0]["train"].shards
    manifests = index_shards(shards, CLS, HEADERS, class_map=chosen)[0]
    (some,) = manifests["train"].shards
    assert (some.num_samples, some.sha256) == (1, every[0].sha256)
    write_manifests(str(tmp_path), shards, manifests, force=False)
    assert verify(str(tmp_path), decode=False).problems == ()


@pytest.mark.slow
def test_a_damaged_shard_is_named(s3: S3, tmp_path: Path) -> None:
    path = by_webdataset(tmp_path / "in/0.tar", labelled([0] * 3))
    path.write_bytes(path.read_bytes()[:5000])
    s3.put(s3.url(tmp_path.name), tmp_path / "in")
    for url in (s3.url(tmp_path.name, "0.tar"), str(path)):
        with pytest.raises(DataError) as raised:
            scan_resumably([url], CLS, HEADERS)
        (problem,) = raised.value.value
        assert problem.startswith(f"{url}: has no usable samples: ")
    with pytest.raises(DataError) as raised:
        scan_resumably([s3.url(tmp_path.name, "none.tar")], CLS, HEADERS)
    assert "is missing" in raised.value.problem


@pytest.mark.slow
def test_the_faster_way_is_chosen(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "in", 2, 10, 20_000)
    s3.put(s3.url(tmp_path.name), tmp_path / "in")
    urls = [s3.url(tmp_path.name, f"shard-00000{n}.tar") for n in range(2)]
    messages: list[str] = []
    assert header_scan.choose_way(urls, CLS, messages.append) == "whole"  # a small set
    monkeypatch.setattr(header_scan, "_SMALL_SET_BYTES", 0)
    for gain, way in ((0, "headers"), (1e9, "whole")):
        monkeypatch.setattr(header_scan, "_MIN_GAIN", gain)
        assert header_scan.choose_way(urls, CLS, messages.append) == way
    assert len(messages) == 2


@pytest.mark.slow
def test_a_server_without_ranges_sends_shards_once(tmp_path: Path) -> None:
    (info,) = make_shards(tmp_path, 1, 10, 2000)
    with http_server.serve(tmp_path) as web:
        (scan,) = scan_resumably([f"{web.url}/{info.name}"], CLS, HEADERS)
    assert scan.info() == info


@pytest.mark.slow
def test_a_store_that_has_digests_gives_whole_ones(tmp_path: Path) -> None:
    infos = make_shards(tmp_path / "in/train", 2, 10, 200_000)
    with hub_server.serve(tmp_path / "in") as fetched:
        shards = find_shards(hub_server.URL, "train")
        manifests, counts = index_shards(shards, CLS, HEADERS)
    assert [*manifests["train"].shards] == infos
    assert counts["train"].total() == 20
    assert sum(stop - start for start, stop in fetched) < 0.5 * sum(s.num_bytes for s in infos)


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("what", ["headers", pytest.param("whole", marks=pytest.mark.slow)])
def test_an_index_that_failed_goes_on(s3: S3, tmp_path: Path, records: Path, what: str) -> None:
    make_shards(tmp_path / "in/train", 3, 4, 1000)
    last = tmp_path / "in/train/shard-000002.tar"
    good = last.read_bytes()
    last.write_bytes(good[:-2000])
    url = s3.url(tmp_path.name)
    s3.put(url, tmp_path / "in")
    shards, options = find_shards(url, "train"), replace(HEADERS, what=what)
    with pytest.raises(DataError):
        index_shards(shards, CLS, options)
    (record,) = records.iterdir()
    with record.open("a") as file:
        file.write('\n[{"url": "cut sho')
    filesystem.write_bytes(f"{url}/train/{last.name}", good)
    s3.forget()
    messages: list[str] = []
    options = replace(options, what="auto", on_message=messages.append)
    progress: list[int] = []
    found, _ = index_shards(shards, CLS, replace(options, on_progress=progress.append))
    assert found["train"].num_samples == 12
    assert progress[-1] == 12
    read = {r["path"].rpartition("/")[2] for r in s3.requests() if r["method"] == "GET"}
    assert read == {last.name}
    s3.forget()
    assert index_shards(shards, CLS, options)[0] == found
    assert [r for r in s3.requests() if r["method"] == "GET"] == []
    assert len(messages) == 2
    filesystem.write_bytes(f"{url}/train/{last.name}", b"changed" + good[7:])
    with pytest.raises(DataError):
        index_shards(shards, CLS, options)
    forget_scans(shards, CLS)
    assert not [*records.iterdir()]


def test_no_place_for_records_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "in/train", 2, 2, 1000)
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    shards = find_shards(str(tmp_path / "in"), "train")
    assert index_shards(shards, CLS)[0]["train"].num_samples == 4
    forget_scans(shards, CLS)


@pytest.mark.slow
def test_an_index_that_was_killed_goes_on(s3: S3, tmp_path: Path, records: Path) -> None:
    make_shards(tmp_path / "in/train", 40, 2, 1000)
    url = s3.url("killed index")
    s3.put(url, tmp_path / "in")
    s3.fail(latency_s=0.1)
    command = [sys.executable, "-m", "orchestrator.cli.main", "shard", "index", url]
    command += ["--split=train", "--read=headers", "--num-workers=1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment) as process:
        deadline_s = time.monotonic() + 60
        while not any(path.stat().st_size for path in records.glob("*.jsonl")):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    (path,) = records.glob("*.jsonl")
    num_recorded = path.read_text().count('"headers"')
    assert 0 < num_recorded < 40
    s3.forget()
    subprocess.run(command, env=environment, check=True)
    assert not [*records.iterdir()]
    assert read_manifest(url, "train").num_samples == 80
    read = {r["path"] for r in s3.requests() if r["method"] == "GET" and ".tar" in r["path"]}
    assert len(read) <= 40 - num_recorded + 4  # whose images are profiled


# ---------------------------------------------------------------- what others have counted


def write_counts(directory: Path, kind: str, num_samples: int) -> Path:
    """Write a count for each shard of a directory, as other tools do."""
    names = sorted(path.name for path in directory.glob("*.tar"))
    lengths = [num_samples] * len(names)
    if kind == "img2dataset":
        for name in names:
            stats = {"count": 99, "successes": num_samples, "failed_to_download": 99 - num_samples}
            directory.joinpath(f"{name[:-4]}_stats.json").write_text(json.dumps(stats))
        return directory / f"{names[0][:-4]}_stats.json"
    if kind == "wids":
        shards = [{"url": f"/cluster/{name}", "nsamples": num_samples} for name in names]
        content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
        path = directory / "shardindex.json"
    else:
        split = {"name": "train", "filenames": names, "shard_lengths": lengths}
        content = {"splits": {"train": {**split, "num_samples": sum(lengths)}}}
        path = directory / "_info.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def large(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of shards, which are treated as a large remote set."""
    monkeypatch.setattr(header_scan, "_SMALL_SET_BYTES", 0)
    make_shards(tmp_path / "in/train", 6, 4, 70_000)
    return tmp_path / "in/train"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["timm", "img2dataset", "wids"])
def test_counts_of_others_are_used(s3: S3, large: Path, kind: str) -> None:
    path, url = write_counts(large, kind, 4), s3.url(kind)
    s3.put(url, large.parent)
    s3.forget()
    shards, messages = find_shards(url, "train"), list[str]()
    options = ReadOptions(what="auto", on_message=messages.append)
    names = [f"class {i}" for i in range(7)]
    manifests, counts = index_shards(shards, CLS, options, classes=names)
    assert any(f"{url}/train/{path.name}" in message for message in messages)
    assert manifests["train"].num_samples == 24
    assert manifests["train"].classes == tuple(names)
    assert not counts["train"]
    heads = [r for r in s3.requests() if r["path"].endswith(".tar") and r["method"] == "GET"]
    read = Counter(request["path"] for request in heads)
    assert len([n for n in read.values() if n <= 3]) == 2  # of the others some labels are read
    forget_scans(shards, CLS)
    by_headers, _ = index_shards(shards, CLS, HEADERS, classes=names)
    assert by_headers["train"].num_samples == 24
    kinds = [{s.digest for s in found["train"].shards} for found in (manifests, by_headers)]
    assert kinds == [{"sampled"}, {"headers"}]


@pytest.mark.parametrize(("num_samples", "num_classes"), [(5, 7), (4, 2)])
def test_wrong_counts_and_unknown_labels_are_refused(
    s3: S3, large: Path, num_samples: int, num_classes: int
) -> None:
    write_counts(large, "timm", num_samples)
    url, classes = s3.url("wrong counts"), [f"class {i}" for i in range(num_classes)]
    s3.put(url, large.parent)
    with pytest.raises(DataError) as raised:
        index_shards(find_shards(url, "train"), CLS, ReadOptions(what="auto"), classes=classes)
    assert raised.value.value == (f"{url}/train/_info.json" if num_samples == 5 else [2, 3])


def test_counts_of_an_interrupted_index_are_of_no_use_without_classes(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_counts(large, "timm", 4)
    url, options = "memory://interrupted", ReadOptions(what="auto")
    fsspec.filesystem("memory").put(str(large.parent), url, recursive=True)
    shards = find_shards(url, "train")
    index_shards(shards, CLS, options, classes=[*"abcdefg"])
    monkeypatch.setattr(header_scan, "_SMALL_SET_BYTES", 1e9)
    manifests, counts = index_shards(shards, CLS, options)
    assert counts["train"].total() == 24
    assert {shard.digest for shard in manifests["train"].shards} == {"whole"}


def test_counts_of_local_shards_are_compared(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_counts(large, "timm", 4)
    shards = find_shards(str(large.parent), "train")
    manifests, counts = index_shards(shards, CLS, ReadOptions(what="auto"), classes=[*"abcdefg"])
    assert counts["train"].total() == 24
    assert {shard.digest for shard in manifests["train"].shards} == {"whole"}
    assert caplog.records == []
    path.write_text(path.read_text().replace("[4,", "[3,"))
    assert index_shards(shards, CLS, ReadOptions(what="auto"), classes=[*"abcdefg"])[0] == manifests
    (record,) = caplog.records
    assert str(path) in record.getMessage()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"splits": {"train": {}}}', '{"shardlist": [3]}', '{"splits": [1]}', "3"],
)
def test_other_files_are_no_counts(large: Path, content: str) -> None:
    large.joinpath("_info.json").write_text(content)
    assert find_counts([str(path) for path in large.glob("*.tar")]) is None


def test_counts_of_some_shards_are_no_counts(large: Path) -> None:
    write_counts(large, "timm", 4)
    assert find_counts([*map(str, large.glob("*.tar")), str(large / "new.tar")]) is None


def test_records_of_another_version_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records = ScanRecords(["s3://b/a.tar"], CLS)
    records.add(Record(Scan("s3://b/a.tar"), "whole", "1"))
    (file,) = tmp_path.rglob("*.jsonl")
    assert ScanRecords(["s3://b/a.tar"], CLS).way == "whole"
    file.write_text(file.read_text().replace('"num_samples"', '"num_pictures"'))
    assert ScanRecords(["s3://b/a.tar"], CLS).way is None
