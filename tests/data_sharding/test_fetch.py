"""Bytes over the network, from a server that fails on purpose."""

import errno
import os
import threading

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3 import make_shards
from web import serve

from data_sharding.errors import DataError, ShardError, UnavailableError
from data_sharding.format.manifest import ShardInfo
from data_sharding.io.download import ByteRange, DownloadSettings, fetch, write_at
from data_sharding.storage.fetch_shard import download

QUICK = DownloadSettings(num_connections=4, part_bytes=100_000, part_timeout_s=2, deadline_s=60)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def shard(s3_server, directory):
    (shard,) = make_shards(directory, 1, 20, 40_000)
    s3_server.put(s3_server.url("fetch"), directory)
    return shard


@pytest.fixture
def s3(s3_server):
    s3_server.fail()
    return s3_server


@pytest.fixture
def url(s3, shard):
    return s3.url("fetch", shard.name)


@pytest.fixture
def file(tmp_path):
    with (tmp_path / "part").open("w+b", buffering=0) as file:
        yield file


@pytest.fixture
def web(directory):
    with serve(directory) as web:
        yield web


def read(file):
    file.seek(0)
    return file.read()


def test_a_shard_comes_in_parts(s3, url, shard, directory, file):
    download(url, shard, file, QUICK)
    assert read(file) == (directory / shard.name).read_bytes()
    gets = sorted((r["start"], r["stop"]) for r in s3.requests() if r["method"] == "GET")
    assert len(gets) == -(-shard.num_bytes // QUICK.part_bytes)
    assert gets[0] == (0, 100_000)
    assert gets[-1][1] == shard.num_bytes


@pytest.mark.parametrize("kind", ["errors", "cuts", "stalls"])
def test_the_bytes_are_right_whatever_fails(s3, url, shard, directory, file, kind):
    s3.fail(**{kind: 0.3}, seed=3)
    patience = DownloadSettings(
        8, 50_000, part_timeout_s=0.3 if kind == "stalls" else 5, deadline_s=60
    )
    download(url, shard, file, patience)
    assert read(file) == (directory / shard.name).read_bytes()
    assert sum(request["fault"] == kind[:-1] for request in s3.requests()) >= 3


def test_all_connections_work_at_the_same_time(s3, url, shard):
    s3.fail(latency_s=0.05)
    pieces = [ByteRange(url, i, i + 1) for i in range(4)]
    meet = threading.Barrier(4, timeout=30)  # a fetch one after the other would never pass
    fetch(pieces, QUICK, lambda number, data: meet.wait() and None)


def test_pieces_of_several_files_come_with_their_numbers(s3, url, shard, directory):
    s3.put(s3.url("other"), directory)
    data = (directory / shard.name).read_bytes()
    ranges = [(i * 999, i * 999 + 1 + i) for i in range(20)]
    urls = [url, s3.url("other", shard.name)]
    found = {}
    pieces = [ByteRange(urls[i % 2], *r) for i, r in enumerate(ranges)]
    fetch(pieces, QUICK, lambda number, data: found.update({number: data}))
    assert found == {i: data[a:b] for i, (a, b) in enumerate(ranges)}


def test_file_systems_without_async_are_fetched_from_too(shard, directory, file):
    fsspec.filesystem("memory").pipe_file("/a.tar", (directory / shard.name).read_bytes())
    try:
        download("memory://a.tar", shard, file, QUICK)
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
    assert read(file) == (directory / shard.name).read_bytes()


def test_a_missing_shard_is_an_error_at_once(s3, url, shard, file):
    with pytest.raises(ShardError, match=r"no shard at s3://.*/none.tar: the data set is incompl"):
        download(s3.url("none.tar"), shard, file, QUICK)
    assert len(s3.requests()) == 1


def test_the_error_at_the_deadline_says_what_was_tried(s3, url, shard, file):
    s3.fail(cuts=1)
    impatient = DownloadSettings(2, 100_000, part_timeout_s=5, deadline_s=1)
    with pytest.raises(DataError) as error:
        download(url, shard, file, impatient)
    message = str(error.value)
    assert message.startswith(f"cannot read {url}: ")
    assert "attempts at the same bytes failed, and for 1 s nothing has come" in message
    assert "cluster.cache.deadline_s" in message


def test_a_server_that_is_silent_for_good_is_an_error_at_the_deadline(s3, url, shard, file):
    s3.fail(stalls=1)
    impatient = DownloadSettings(2, 100_000, part_timeout_s=0.2, deadline_s=1)
    with pytest.raises(DataError, match=r"no answer within 0.2 s"):
        download(url, shard, file, impatient)


def test_the_deadline_counts_from_what_came_last(s3, url, shard, file):
    """A shard that takes longer than the deadline in all, but moves, is no error."""
    s3.fail(stalls=0.25, seed=7)
    slow = DownloadSettings(1, 50_000, part_timeout_s=0.4, deadline_s=1)
    download(url, shard, file, slow)
    assert sum(request["fault"] == "stall" for request in s3.requests()) * 0.4 > 1


def test_a_server_that_sends_other_bytes_than_asked_for_is_an_error(web, shard, file):
    """Python's own knows no ranges: it sends the whole file."""
    url = f"{web.url}/{shard.name}"
    impatient = DownloadSettings(1, 100_000, part_timeout_s=5, deadline_s=0.2)
    with pytest.raises(DataError, match="890880 bytes came instead of 100000"):
        download(url, shard, file, impatient)
    download(url, shard, file, DownloadSettings())  # in one part it is what was asked for


def test_a_store_that_refuses_once_is_asked_again(web, shard, directory, file):
    statuses = iter([403, 403])  # to HEAD and GET
    web.answer = lambda path: next(statuses, 0)
    download(f"{web.url}/{shard.name}", shard, file, DownloadSettings())
    assert read(file) == (directory / shard.name).read_bytes()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_at_once_and_no_fault_of_the_data(web, shard, file, status):
    url = f"{web.url}/{shard.name}"
    download(url, shard, file, DownloadSettings())
    web.answer = lambda path: status
    for call in (
        lambda: download(url, shard, file, DownloadSettings()),
        lambda: fetch(
            [ByteRange(url, 0, shard.num_bytes)], DownloadSettings(), lambda number, data: None
        ),
    ):
        with pytest.raises(UnavailableError, match=f"not allowed to read {url}: .*{status}"):
            call()


def test_a_server_that_fails_is_no_missing_shard(web, shard, file):
    url = f"{web.url}/{shard.name}"
    web.answer = lambda path: 500
    with pytest.raises(UnavailableError, match=r"attempts at the same bytes failed.*500"):
        download(url, shard, file, DownloadSettings(deadline_s=0.3))
    web.answer = lambda path: 404
    with pytest.raises(ShardError, match="no shard at"):
        download(url, shard, file, DownloadSettings())


def test_keys_are_read_again_when_they_have_expired(
    s3, url, shard, directory, file, tmp_path, monkeypatch
):
    keys = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    for name in ("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"):
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3.endpoint})

    def renew(key):
        keys.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=secret\n")

    renew("first")
    s3.fail(key="first")
    fetch([ByteRange(url, 0, 100)], QUICK, lambda number, data: None)
    renew("second")
    s3.fail(key="second")
    download(url, shard, file, QUICK)
    assert read(file) == (directory / shard.name).read_bytes()
    s3.fail(key="third")
    with pytest.raises(UnavailableError, match="not allowed to read"):
        download(url, shard, file, QUICK)
    assert len(s3.requests()) <= 4  # botocore makes each twice


def test_a_wrong_digest_is_tried_twice(s3, url, shard, file):
    other = ShardInfo(shard.name, shard.num_samples, shard.num_bytes, "0" * 64)
    with pytest.raises(ShardError, match=rf"{shard.sha256}, twice, and its manifest says 0{{64}}"):
        download(url, other, file, QUICK)
    assert s3.downloads()[shard.name] == 2


def test_a_wrong_size_is_an_error_at_once(s3, url, shard, file):
    for num_bytes in shard.num_bytes - 1, shard.num_bytes + 512:
        other = ShardInfo(shard.name, shard.num_samples, num_bytes, shard.sha256)
        with pytest.raises(ShardError, match=f"has {shard.num_bytes} bytes and its manifest says"):
            download(url, other, file, QUICK)
    assert not s3.downloads()


def test_a_disk_that_fails_is_not_taken_for_a_store_that_fails(url, shard):
    with open("/dev/full", "w+b", buffering=0) as full, pytest.raises(OSError) as error:  # noqa: PTH123
        download(url, shard, full, QUICK)
    assert error.value.errno in (errno.ENOSPC, errno.ESPIPE)


@given(st.lists(st.binary(max_size=50), max_size=20), st.randoms())
def test_what_is_written_in_any_order_lies_in_its_place(parts, rng):
    with os.fdopen(os.memfd_create("test"), "r+b", buffering=0) as file:
        places = [sum(map(len, parts[:i])) for i in range(len(parts))]
        for i in rng.sample(range(len(parts)), len(parts)):
            write_at(file, places[i], parts[i])
        assert file.read() == b"".join(parts)
