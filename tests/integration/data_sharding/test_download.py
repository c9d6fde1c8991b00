"""Bytes over the network, from a server that fails on purpose."""

import errno
import os
import threading
import time

import fsspec
import pytest
from http_server import serve
from hypothesis import given
from hypothesis import strategies as st
from s3_server import make_shards

from data_sharding.errors import DataError, ShardError, UnavailableError
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io.download import ByteRange, DownloadSettings, fetch_ranges, write_at
from data_sharding.storage.fetch_shard import fetch_shard


def limits(num_requests, chunk_bytes, request_timeout_s, retry_timeout_s):
    return DownloadSettings(
        max_concurrent_requests=num_requests,
        chunk_mb=chunk_bytes / 1e6,
        request_timeout_s=request_timeout_s,
        retry_timeout_s=retry_timeout_s,
        max_hedged_fraction=0,  # requests are counted
    )


QUICK = limits(4, 100_000, 2, 60)


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


def test_a_shard_is_fetched_in_chunks(s3, url, shard, directory, file):
    fetch_shard(url, shard, SampleRule(), file, QUICK)
    assert read(file) == (directory / shard.name).read_bytes()
    gets = sorted((r["start"], r["stop"]) for r in s3.requests() if r["method"] == "GET")
    assert len(gets) == -(-shard.num_bytes // QUICK.chunk_bytes)
    assert gets[0] == (0, 100_000)
    assert gets[-1][1] == shard.num_bytes


@pytest.mark.parametrize("kind", ["errors", "cuts", "stalls"])
def test_the_bytes_are_right_under_faults(s3, url, shard, directory, file, kind):
    s3.fail(**{kind: 0.3}, seed=3)
    patience = limits(8, 50_000, 0.3 if kind == "stalls" else 5, 60)
    fetch_shard(url, shard, SampleRule(), file, patience)
    assert read(file) == (directory / shard.name).read_bytes()
    assert sum(request["fault"] == kind[:-1] for request in s3.requests()) >= 3


def test_all_connections_work_at_the_same_time(s3, url, shard):
    s3.fail(latency_s=0.05)
    pieces = [ByteRange(url, i, i + 1) for i in range(4)]
    meet = threading.Barrier(4, timeout=30)  # a fetch one after the other would never pass
    fetch_ranges(pieces, QUICK, lambda number, data: meet.wait() and None)


def test_ranges_of_several_files_arrive_with_their_indices(s3, url, shard, directory):
    s3.put(s3.url("other"), directory)
    data = (directory / shard.name).read_bytes()
    ranges = [(i * 999, i * 999 + 1 + i) for i in range(20)]
    urls = [url, s3.url("other", shard.name)]
    fetched = {}
    pieces = [ByteRange(urls[i % 2], *r) for i, r in enumerate(ranges)]
    fetch_ranges(pieces, QUICK, lambda number, data: fetched.update({number: data}))
    assert fetched == {i: data[a:b] for i, (a, b) in enumerate(ranges)}


def test_file_systems_without_async_are_fetched_from_too(shard, directory, file):
    fsspec.filesystem("memory").pipe_file("/a.tar", (directory / shard.name).read_bytes())
    try:
        fetch_shard("memory://a.tar", shard, SampleRule(), file, QUICK)
    finally:
        fsspec.filesystem("memory").rm("/", recursive=True)
    assert read(file) == (directory / shard.name).read_bytes()


def test_a_missing_shard_is_an_error_at_once(s3, url, shard, file):
    with pytest.raises(ShardError) as raised:
        fetch_shard(s3.url("none.tar"), shard, SampleRule(), file, QUICK)
    assert raised.value.value == s3.url("none.tar")
    assert len(s3.requests()) == 1


def test_failing_requests_are_an_error_at_the_deadline(s3, url, shard, file):
    s3.fail(cuts=1)
    impatient = limits(2, 100_000, 5, 1)
    with pytest.raises(UnavailableError, match="attempts at the same bytes failed") as raised:
        fetch_shard(url, shard, SampleRule(), file, impatient)
    assert raised.value.value == url
    assert "`retry_timeout_s`" in raised.value.hint


def test_a_server_that_is_silent_for_good_is_an_error_at_the_deadline(s3, url, shard, file):
    s3.fail(stalls=1)
    impatient = limits(2, 100_000, 0.2, 1)
    with pytest.raises(DataError, match=r"no response within 0.2 s"):
        fetch_shard(url, shard, SampleRule(), file, impatient)


def test_the_deadline_counts_from_the_last_response(s3, url, shard, file):
    """A shard that takes longer than the deadline in all, but moves, is no error."""
    s3.fail(stalls=0.25, seed=7)
    slow = limits(1, 50_000, 0.4, 1)
    fetch_shard(url, shard, SampleRule(), file, slow)
    assert sum(request["fault"] == "stall" for request in s3.requests()) * 0.4 > 1


@pytest.mark.slow
def test_late_requests_are_sent_twice(s3, url, shard, directory):
    ranges = [ByteRange(url, 2000 * i, 2000 * i + 2000) for i in range(shard.num_bytes // 2000)]
    fetched, settings = {}, DownloadSettings(max_concurrent_requests=4)
    keep = lambda number, data: fetched.update({number: data})  # noqa: E731
    fetch_ranges(ranges, settings, keep)
    s3.fail(stalls=0.01, stall_s=20)
    start_s = time.monotonic()
    fetch_ranges(ranges, settings, keep)
    assert time.monotonic() - start_s < 15  # one stall alone would take longer
    data = (directory / shard.name).read_bytes()
    assert fetched == {i: data[r.start : r.stop] for i, r in enumerate(ranges)}
    requests = [r["fault"] for r in s3.requests() if r["method"] == "GET"]
    assert requests.count("stall") >= 2
    assert len(ranges) + requests.count("stall") <= len(requests) <= 1.05 * len(ranges)


def test_a_server_that_ignores_ranges_sends_each_file_once(web, shard, directory, file):
    """Python's own knows no ranges: it sends the whole file."""
    url, data, gets = f"{web.url}/{shard.name}", (directory / shard.name).read_bytes(), []
    fetch_shard(url, shard, SampleRule(), file, QUICK)
    assert read(file) == data
    web.answer = lambda path: gets.append(path) or 0
    fetch_shard(url, shard, SampleRule(), file, QUICK)
    assert len(gets) == 2  # HEAD and GET
    fetched = {}
    wanted = [ByteRange(url, 1000, 3000), ByteRange(url, 0, 10)]
    fetch_ranges(wanted, QUICK, fetched.__setitem__)
    assert fetched == {0: data[1000:3000], 1: data[:10]}


def test_a_whole_file_may_take_longer_than_a_request(web, shard, directory, file):
    web.pause_s = 0.04  # of 8 pieces
    fetch_shard(f"{web.url}/{shard.name}", shard, SampleRule(), file, limits(4, 100_000, 0.2, 5))
    assert read(file) == (directory / shard.name).read_bytes()


def test_a_store_that_refuses_once_is_retried(web, shard, directory, file):
    statuses = iter([403, 403])  # to HEAD and GET
    web.answer = lambda path: next(statuses, 0)
    fetch_shard(f"{web.url}/{shard.name}", shard, SampleRule(), file, DownloadSettings())
    assert read(file) == (directory / shard.name).read_bytes()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_an_unavailable_error_at_once(web, shard, file, status):
    url = f"{web.url}/{shard.name}"
    fetch_shard(url, shard, SampleRule(), file, DownloadSettings())
    web.answer = lambda path: status
    for call in (
        lambda: fetch_shard(url, shard, SampleRule(), file, DownloadSettings()),
        lambda: fetch_ranges(
            [ByteRange(url, 0, shard.num_bytes)], DownloadSettings(), lambda number, data: None
        ),
    ):
        with pytest.raises(
            UnavailableError, match=f"not allowed to read {url}: .*{status}"
        ) as raised:
            call()
        assert raised.value.value == url


def test_a_failing_server_is_not_a_missing_shard(web, shard, file):
    url = f"{web.url}/{shard.name}"
    web.answer = lambda path: 500
    with pytest.raises(UnavailableError, match="500"):
        fetch_shard(url, shard, SampleRule(), file, DownloadSettings(retry_timeout_s=0.3))
    web.answer = lambda path: 404
    with pytest.raises(ShardError):
        fetch_shard(url, shard, SampleRule(), file, DownloadSettings())


def test_expired_credentials_are_reloaded(s3, url, shard, directory, file, tmp_path, monkeypatch):
    keys = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    for name in ("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"):
        monkeypatch.delenv(name)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3.endpoint})

    def renew(key):
        keys.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=secret\n")

    renew("first")
    s3.fail(key="first")
    fetch_ranges([ByteRange(url, 0, 100)], QUICK, lambda number, data: None)
    renew("second")
    s3.fail(key="second")
    fetch_shard(url, shard, SampleRule(), file, QUICK)
    assert read(file) == (directory / shard.name).read_bytes()
    s3.fail(key="third")
    with pytest.raises(UnavailableError):
        fetch_shard(url, shard, SampleRule(), file, QUICK)
    assert len(s3.requests()) <= 4  # botocore makes each twice


def test_a_wrong_digest_is_tried_twice(s3, url, shard, file):
    other = ShardInfo(shard.name, shard.num_samples, shard.num_bytes, "0" * 64)
    with pytest.raises(ShardError, match=rf"{shard.sha256}, twice, .* 0{{64}}"):
        fetch_shard(url, other, SampleRule(), file, QUICK)
    assert s3.downloads()[shard.name] == 2


def test_a_wrong_size_is_an_error_at_once(s3, url, shard, file):
    for num_bytes in shard.num_bytes - 1, shard.num_bytes + 512:
        other = ShardInfo(shard.name, shard.num_samples, num_bytes, shard.sha256)
        with pytest.raises(ShardError, match=f"{shard.num_bytes} bytes .* {num_bytes}"):
            fetch_shard(url, other, SampleRule(), file, QUICK)
    assert not s3.downloads()


def test_a_failing_disk_is_an_os_error(url, shard):
    with open("/dev/full", "w+b", buffering=0) as full, pytest.raises(OSError) as error:  # noqa: PTH123
        fetch_shard(url, shard, SampleRule(), full, QUICK)
    assert error.value.errno in (errno.ENOSPC, errno.ESPIPE)


@given(st.lists(st.binary(max_size=50), max_size=20), st.randoms())
def test_chunks_written_in_any_order_are_at_their_offsets(parts, rng):
    with os.fdopen(os.memfd_create("test"), "r+b", buffering=0) as file:
        places = [sum(map(len, parts[:i])) for i in range(len(parts))]
        for i in rng.sample(range(len(parts)), len(parts)):
            write_at(file, places[i], parts[i])
        assert file.read() == b"".join(parts)
