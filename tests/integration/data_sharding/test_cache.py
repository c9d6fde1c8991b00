"""Shards in the node's cache, shared by processes that come, wait and are killed."""

import gc
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from s3_server import make_shards

import data_sharding
from data_sharding.errors import DataError, ShardError
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.storage.cache import (
    Cache,
    CacheSettings,
    PrefetchResult,
    cache_directory,
    small_cache_warning,
)
from data_sharding.storage.fetch_shard import shard_sha256
from data_sharding.storage.shard_store import CachedStore

NUM_SHARDS, NUM_SAMPLES = 6, 5
DEADLINE_S = 60


@pytest.fixture(scope="module")
def shards(s3_server, source):
    infos = make_shards(source, NUM_SHARDS, NUM_SAMPLES, 40_000)
    s3_server.put(s3_server.url("cache"), source)
    return infos


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "the cache"


def settings(directory, max_bytes=10**9):
    return CacheSettings(
        dir=str(directory),
        max_gb=max_bytes / 1e9,
        chunk_mb=0.05,
        request_timeout_s=2,
        max_hedged_fraction=0,
    )


def open_store(s3, directory, max_bytes=10**9):
    return CachedStore(s3.url("cache"), settings(directory, max_bytes), SampleRule())


def names(directory, suffix="tar"):
    return sorted(path.name for path in directory.glob(f"*.{suffix}"))


def assert_right(reader, source, shard):
    with ShardReader(source / shard.name) as expected:
        assert len(reader) == len(expected) == shard.num_samples
        for i in range(len(reader)):
            assert bytes(reader.image(i)) == bytes(expected.image(i))
            assert reader.label_bytes(i) == expected.label_bytes(i)
            assert reader.key(i) == expected.key(i)


def test_a_shard_is_fetched_once_and_read_as_it_is(s3, directory, source, shards):
    for _ in range(2):
        store = open_store(s3, directory)
        for shard in shards:
            store.prefetch_samples([(shard, 0)])
            assert_right(store.open(shard), source, shard)
            assert store.open(shard) is store.open(shard)
            store.close_evicted()
    assert s3.downloads() == {shard.name: 1 for shard in shards}
    assert names(directory) == sorted(f"{shard.sha256}.tar" for shard in shards)
    assert not names(directory, "part")
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["sampled", "headers"])
def test_a_digest_of_some_bytes_is_fetched_and_checked(s3, directory, source, shards, kind):
    with (source / shards[0].name).open("rb") as file:
        digest = shard_sha256(file, kind, SampleRule())
    shard = replace(shards[0], sha256=digest, digest=kind)
    assert_right(open_store(s3, directory).open(shard), source, shard)
    assert names(directory) == [f"{shard.sha256}.tar"]
    with pytest.raises(ShardError, match=shard.sha256):
        open_store(s3, directory).open(replace(shard, sha256=shards[0].sha256))


def test_a_pickled_store_has_no_open_shards(s3, directory, source, shards):
    store = open_store(s3, directory)
    store.open(shards[0])
    copy = pickle.loads(pickle.dumps(store))
    assert_right(copy.open(shards[0]), source, shards[0])
    assert copy.open(shards[0]) is not store.open(shards[0])
    assert s3.downloads() == {shards[0].name: 1}


@pytest.mark.parametrize("num_shards", [0.5, 1, 2.5])
def test_a_small_cache_gives_the_same_samples(s3, directory, source, shards, num_shards):
    max_bytes = int(num_shards * shards[0].num_bytes)
    store = open_store(s3, directory, max_bytes)
    for turn in range(2 * len(shards)):
        for shard in (shards[turn % 6], shards[(turn + 1) % 6], shards[(turn + 3) % 6]):
            assert_right(store.open(shard), source, shard)
            held = sum(path.stat().st_size for path in directory.glob("*.tar"))
            assert held <= max(max_bytes, shards[0].num_bytes)
        store.close_evicted()


def mapped(directory):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(directory) in line]


def test_an_evicted_shard_stays_readable_until_it_is_closed(s3, directory, source, shards):
    store = open_store(s3, directory, shards[0].num_bytes)
    first, image = store.open(shards[0]), store.open(shards[0]).image(2)
    store.open(shards[1])
    assert names(directory) == [f"{shards[1].sha256}.tar"]
    assert_right(first, source, shards[0])
    assert len([line for line in mapped(directory) if "(deleted)" in line]) == 1
    store.close_evicted()
    with ShardReader(source / shards[0].name) as expected:
        assert bytes(image) == bytes(expected.image(2))
    del first, image
    gc.collect()
    assert len(mapped(directory)) == 1
    assert_right(store.open(shards[1]), source, shards[1])
    assert s3.downloads() == {shards[0].name: 1, shards[1].name: 1}


def test_a_shard_evicted_and_fetched_again_is_another_file(s3, directory, source, shards):
    store, other = open_store(s3, directory), open_store(s3, directory, shards[0].num_bytes)
    store.open(shards[0])
    for shard in shards[1], shards[0]:
        other.open(shard)
    store.close_evicted()
    gc.collect()
    assert not [line for line in mapped(directory) if f"{shards[0].sha256}.tar (del" in line]


@pytest.mark.parametrize("damage", [b"", b"short", bytes(10**6)])
def test_a_file_of_the_wrong_size_is_fetched_again(s3, directory, source, shards, damage):
    open_store(s3, directory).open(shards[0])
    (directory / f"{shards[0].sha256}.tar").write_bytes(damage)
    assert_right(open_store(s3, directory).open(shards[0]), source, shards[0])
    assert s3.downloads() == {shards[0].name: 2}


def test_eviction_follows_the_plan_and_not_the_last_use(s3, directory, source, shards):
    """Four shards in turn, room for three: the last used is always the next to be missed."""
    order = [shards[i % 4] for i in range(20)]
    store = open_store(s3, directory, 3 * shards[0].num_bytes)
    with store.cache.plan() as plan:
        for position, shard in enumerate(order):
            ahead = order[position:]
            plan.write(position, {s.sha256: position + ahead.index(s) for s in ahead})
            assert_right(store.open(shard), source, shard)
            store.close_evicted()
    assert sum(s3.downloads().values()) == num_misses(order, 3, lambda held, ahead: max(
        held, key=lambda s: ahead.index(s) if s in ahead else 99)) == 9  # fmt: skip
    assert num_misses(order, 3, lambda held, ahead: held[0]) == 20


def num_misses(order, num_held, choose_victim):
    """Count the fetches of a cache that holds so many shards, kept in the order of use."""
    held, misses = [], 0
    for position, shard in enumerate(order):
        if shard in held:
            held.remove(shard)
        else:
            misses += 1
            if len(held) == num_held:
                held.remove(choose_victim(held, order[position:]))
        held.append(shard)
    return misses


# ---------------------------------------------------------------- processes

READING = """
import hashlib, json, sys
from data_sharding.storage.cache import CacheSettings
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.storage.shard_store import CachedStore

url, directory, max_bytes, shards = json.loads(sys.argv[1])
settings = CacheSettings(
    dir=directory, max_gb=max_bytes / 1e9, chunk_mb=0.05, request_timeout_s=5
)
store = CachedStore(url, settings, SampleRule())
print("begun", flush=True)
sys.stdin.readline()
for shard in shards:
    reader = store.open(ShardInfo(**shard))
    images = b"".join(bytes(reader.image(i)) for i in range(len(reader)))
    print(shard["name"], hashlib.sha256(images).hexdigest(), flush=True)
    store.close_evicted()
"""


@contextmanager
def start(s3, directory, shards, max_bytes=10**9):
    """Start a process that reads these shards once it is told to go on."""
    argv = json.dumps([s3.url("cache"), str(directory), max_bytes, [asdict(s) for s in shards]])
    home = str(Path(data_sharding.__file__).parent.parent)
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), home])
    process = subprocess.Popen(
        [sys.executable, "-c", READING, argv],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process):
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return sorted(output.split("\n")[:-1])


def expected_lines(source, shards):
    lines = []
    for shard in shards:
        with ShardReader(source / shard.name) as reader:
            images = b"".join(bytes(reader.image(i)) for i in range(len(reader)))
        lines.append(f"{shard.name} {hashlib.sha256(images).hexdigest()}")
    return sorted(lines)


def test_processes_that_want_the_same_shards_fetch_each_once(s3, directory, source, shards):
    s3.fail(latency_s=0.01, errors=0.1, cuts=0.1)
    orders = [shards, shards, shards[::-1], shards[3:] + shards[:3]]
    with (
        start(s3, directory, orders[0]) as a,
        start(s3, directory, orders[1]) as b,
        start(s3, directory, orders[2]) as c,
        start(s3, directory, orders[3]) as d,
    ):
        for process in a, b, c, d:
            go_on(process)
        for process in a, b, c, d:
            assert finish(process) == expected_lines(source, shards)
    first_parts = {(r["path"]) for r in s3.requests() if r["method"] == "HEAD"}
    assert len(first_parts) == sum(r["method"] == "HEAD" for r in s3.requests()) == NUM_SHARDS


def wait_for_request(s3):
    """Wait until a fetch is under way."""
    given_up = threading.Event()
    timer = threading.Timer(DEADLINE_S, given_up.set)
    timer.start()
    while not any(request["method"] == "GET" for request in s3.requests()):
        assert not given_up.wait(0.005)
    timer.cancel()


def test_a_process_waiting_for_a_killed_fetcher_fetches(s3, directory, source, shards):
    s3.fail(stalls=1)
    with start(s3, directory, shards[:1]) as killed, start(s3, directory, shards) as waiting:
        go_on(killed)
        wait_for_request(s3)
        go_on(waiting)
        killed.kill()
        killed.wait()
        s3.fail()
        assert finish(waiting) == expected_lines(source, shards)
    assert not names(directory, "part")


def test_a_fetcher_killed_at_any_moment_leaves_no_damaged_shard(s3, directory, source, shards):
    for delay_s in 0, 0.02, 0.05, 0.1:
        s3.fail(latency_s=0.02)
        with start(s3, directory, shards) as killed:
            go_on(killed)
            wait_for_request(s3)
            threading.Event().wait(delay_s)  # any moment will do
        for path in directory.glob("*.tar"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    s3.fail()
    store = open_store(s3, directory)
    for shard in shards:
        assert_right(store.open(shard), source, shard)
    store.cache.remove_stale()
    assert not names(directory, "part")


@pytest.mark.slow
def test_processes_share_a_cache_for_less_than_they_read(s3, directory, source, shards):
    """Shards are evicted under the hands of those who look for them."""
    max_bytes = shards[0].num_bytes
    with (
        start(s3, directory, shards * 3, max_bytes) as a,
        start(s3, directory, shards[::-1] * 3, max_bytes) as b,
    ):
        go_on(a)
        go_on(b)
        for process in a, b:
            assert finish(process) == sorted(expected_lines(source, shards) * 3)


# ---------------------------------------------------------------- errors


def test_a_missing_or_wrong_shard_is_an_error(s3, directory, shards):
    store = open_store(s3, directory)
    shard = shards[0]
    with pytest.raises(ShardError) as raised:
        store.open(replace(shard, name="none.tar"))
    assert raised.value.value == "s3://bucket/cache/none.tar"
    with pytest.raises(ShardError, match="its manifest says 7"):
        store.open(replace(shard, num_bytes=7))
    with pytest.raises(ShardError, match=shard.sha256):
        store.open(replace(shard, sha256="0" * 64))
    with pytest.raises(ShardError, match=r"5 samples.*6.*s3://bucket/cache/shard-000000"):
        store.open(replace(shard, num_samples=6))
    assert not names(directory, "part")


def test_a_directory_that_cannot_be_made_is_an_error(s3, tmp_path, shards):
    (tmp_path / "file").touch()
    store = open_store(s3, tmp_path / "file" / "cache")
    for use in (lambda: store.open(shards[0])), store.cache.remove_stale:
        with pytest.raises(DataError, match="Not a directory") as raised:
            use()
        assert raised.value.value == tmp_path / "file" / "cache"
        assert "`cache.dir`" in raised.value.hint


def test_the_directory_depends_on_the_node_and_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directory = cache_directory(None)
    assert directory.parent == tmp_path
    assert str(os.getuid()) in directory.name
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache_directory(None) != directory
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    assert cache_directory("$SCRATCH/${SCRATCH}") == Path(f"{tmp_path}/scratch{tmp_path}/scratch")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(DataError) as raised:
        cache_directory("$SCRATCH/x")
    assert raised.value.value == "$SCRATCH/x"


def give_away(monkeypatch, directory):
    """Let a directory belong to another user than this one."""
    directory.mkdir()
    if os.getuid() == 0:
        os.chown(directory, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)


def test_a_directory_of_somebody_else_is_an_error_to_all_who_use_it(
    s3, directory, shards, monkeypatch
):
    give_away(monkeypatch, directory)
    cache = open_store(s3, directory).cache
    for use in (
        cache.remove_stale,
        cache.plan().__enter__,
        lambda: cache.prefetch(shards[0], "s3://x", 0),
    ):
        with pytest.raises(DataError, match="belongs to the user"):
            use()


def test_a_disk_that_is_full_is_an_error(s3, shards):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:  # refuses what it cannot hold
        huge = replace(shards[0], num_bytes=10**14)
        store = open_store(s3, Path(scratch, "cache"), max_bytes=10**15)
        with pytest.raises(DataError, match=r"100000000.0 MB of shard-000000.tar"):
            store.open(huge)
        assert not list(Path(scratch).rglob("*.part"))


def test_prefetching_returns_its_outcome(s3, directory, shards):
    cache, urls = Cache(settings(directory, shards[0].num_bytes), SampleRule()), {}
    urls = {shard: s3.url("cache", shard.name) for shard in shards}
    with cache.plan() as plan:
        plan.write(0, {shards[0].sha256: 3})
        assert cache.prefetch(shards[0], urls[shards[0]], 3) is PrefetchResult.CACHED
        assert cache.has(shards[0])
        assert cache.prefetch(shards[1], urls[shards[1]], 3) is PrefetchResult.NO_SPACE
        assert cache.prefetch(shards[1], urls[shards[1]], 2) is PrefetchResult.CACHED
        assert not cache.has(shards[0])
    s3.fail(stalls=1)
    with start(s3, directory, shards[2:3]) as fetching:
        go_on(fetching)
        wait_for_request(s3)
        assert cache.prefetch(shards[2], urls[shards[2]], 0) is PrefetchResult.IN_FLIGHT


def test_a_cache_too_small_for_a_step_is_warned_about(directory):
    assert (
        small_cache_warning(settings(directory, 100), shards_in_use=10, mean_shard_bytes=10) is None
    )
    text = small_cache_warning(settings(directory, 10**8), shards_in_use=11, mean_shard_bytes=10**7)
    assert "100.0 MB" in text
    assert "11 shards of 10.0 MB" in text
    assert "cache.max_gb above 0.11" in text
