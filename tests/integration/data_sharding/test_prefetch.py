"""Shards that are cached before they are read."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fork_server import restart_fork_server
from hypothesis import given
from hypothesis import strategies as st
from s3_server import make_shards

import data_sharding
from data_sharding.errors import ShardError
from data_sharding.format.location import Location
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io.file_lock import exclusive_lock
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.prefetch import LookaheadWindow, prefetching
from data_sharding.storage.shard_store import open_store

NUM_SHARDS, NUM_SAMPLES = 8, 4
DEADLINE_S = 60
LABELS = SampleRule()


@pytest.fixture(scope="module")
def shards(s3_server, source):
    infos = make_shards(source, NUM_SHARDS, NUM_SAMPLES, 30_000)
    s3_server.put(s3_server.url("prefetch"), source)
    return infos


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def open_cached(s3, directory, shards):
    def open_it(num_shards):
        max_gb = num_shards * shards[0].num_bytes / 1e9
        settings = CacheSettings(
            dir=str(directory),
            max_gb=max_gb,
            chunk_mb=0.05,
            request_timeout_s=2,
            max_hedged_fraction=0,
        )
        return open_store(Location(train=(s3.url("prefetch"),)), "train", settings, LABELS)

    return open_it


def wait_until(is_true):
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def there(directory, shards):
    return [i for i, shard in enumerate(shards) if (directory / f"{shard.sha256}.tar").exists()]


def read(store, shard, source):
    reader = store.open(shard)
    with ShardReader(source / shard.name) as expected:
        for i in range(len(expected)):
            assert bytes(reader.image(i)) == bytes(expected.image(i))
    store.close_evicted()


def test_as_many_shards_are_prefetched_as_there_is_space_for(
    s3, directory, shards, source, open_cached
):
    store = open_cached(3)
    names = [[0, 1], [1, 2], [2, 3], [3, 4], [5, 4], [6], [7]]
    with prefetching(store, shards, names, np.asarray) as advance:
        wait_until(lambda: there(directory, shards) == [0, 1, 2])
        for batch, expected in enumerate([[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]):
            for number in names[batch]:
                read(store, shards[number], source)
            advance()
            wait_until(lambda expected=expected: there(directory, shards) == expected)
    assert s3.downloads() == {shard.name: 1 for shard in shards}
    assert not multiprocessing.active_children()


def test_what_is_needed_again_soon_stays(s3, directory, shards, source, open_cached):
    """Room for two: shard 0 is read first and last, and stays from the first time on."""
    store = open_cached(2)
    names = [[0], [1], [0], [2], [0], [3], [0], [4], [0]]
    with prefetching(store, shards, names, np.asarray) as advance:
        wait_until(lambda: there(directory, shards) == [0, 1])
        for batch, (number,) in enumerate(names):
            read(store, shards[number], source)
            advance()
            upcoming = [n for (n,) in names[batch + 1 :] if n]
            if number and upcoming:
                wait_until(lambda n=upcoming[0]: there(directory, shards) == [0, n])
    assert s3.downloads() == {shard.name: 1 for shard in shards[:5]}


def test_two_jobs_with_other_plans_share_a_bounded_cache(
    s3, directory, shards, source, open_cached
):
    s3.fail(latency_s=0.005, errors=0.1, cuts=0.1)
    rng = np.random.default_rng(1)
    orders = [rng.integers(NUM_SHARDS, size=24).tolist() for _ in range(2)]
    failures, sizes, done = [], [], threading.Event()

    def train(order):
        try:
            store = open_cached(5)
            with prefetching(store, shards, [[n] for n in order], np.asarray) as advance:
                for number in order:
                    read(store, shards[number], source)
                    advance()
        except Exception as error:  # would be lost with the thread
            failures.append(error)

    def sample():
        while not done.wait(0.002):
            # No shard comes or goes under the lock; a failed fetch may remove its part file.
            with suppress(FileNotFoundError), exclusive_lock(directory / "room.lock"):
                sizes.append(sum(p.stat().st_size for p in directory.iterdir() if p.is_file()))

    sampler = threading.Thread(target=sample)
    jobs = [threading.Thread(target=train, args=(order,)) for order in orders]
    for thread in (sampler, *jobs):
        thread.start()
    for job in jobs:
        job.join(DEADLINE_S)
    done.set()
    sampler.join()
    assert not failures
    assert 3 * shards[0].num_bytes < max(sizes) <= 5 * shards[0].num_bytes


def test_a_shard_that_cannot_be_prefetched_is_left_to_its_reader(
    directory, shards, source, open_cached
):
    store = open_cached(8)
    broken = [*shards[:3], replace(shards[3], name="none.tar"), *shards[4:]]
    names = [[2], [3], [4], [5]]
    with prefetching(store, broken, names, np.asarray) as advance:
        wait_until(lambda: there(directory, shards) == [2, 4, 5])
        read(store, broken[2], source)
        advance()
        with pytest.raises(ShardError, match=r"s3://bucket/prefetch/none.tar"):
            store.open(broken[3])


def test_readers_go_on_without_a_killed_prefetcher(s3, directory, shards, source, open_cached):
    store = open_cached(4)
    s3.fail(stalls=1)
    with prefetching(store, shards, [[0], [1], [2]], np.asarray) as advance:
        wait_until(lambda: list(directory.glob("*.part")))
        (process,) = multiprocessing.active_children()
        process.kill()
        s3.fail()
        for number in range(3):
            read(store, shards[number], source)
            advance()
    assert not list(directory.glob("*.part"))


def test_nothing_is_started_for_stores_without_a_cache(s3, shards, source):
    for url in str(source), s3.url("prefetch"):
        store = open_store(Location(train=(url,)), "train", None, LABELS)
        with prefetching(store, shards, [[0]], np.asarray) as advance:
            advance()
            assert not multiprocessing.active_children()


RANK = """
import sys
import numpy as np
from data_sharding.storage.cache import CacheSettings
from data_sharding.format.location import Location
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.storage.prefetch import prefetching
from data_sharding.storage.shard_store import open_store

def main():
    url, directory, name, num_samples, num_bytes, sha256 = sys.argv[1:]
    shard = ShardInfo(name, int(num_samples), int(num_bytes), sha256)
    settings = CacheSettings(dir=directory, max_gb=1)
    store = open_store(Location(train=(url,)), "train", settings, SampleRule())
    with prefetching(store, [shard], [[0]], np.asarray):
        print("training", flush=True)
        sys.stdin.readline()

if __name__ == "__main__":
    main()
"""


def test_a_prefetcher_ignores_signals_and_ends_with_its_rank(s3, tmp_path, shards):
    s3.fail(stalls=1, stall_s=1)
    script, directory = tmp_path / "rank.py", tmp_path / "cache"
    script.write_text(RANK)
    home = str(Path(data_sharding.__file__).parent.parent)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    shard = [shards[0].name, shards[0].num_samples, shards[0].num_bytes, shards[0].sha256]
    rank = subprocess.Popen(
        [sys.executable, script, s3.url("prefetch"), directory, *map(str, shard)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with ExitStack() as stack:
        stack.callback(rank.communicate)
        stack.enter_context(suppress(ProcessLookupError))
        stack.callback(os.killpg, rank.pid, signal.SIGKILL)
        assert rank.stdout.readline() == b"training\n"
        wait_until(lambda: list(directory.glob("*.part")))
        for pid in set(members(rank.pid)) - {rank.pid}:
            for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
                os.kill(pid, number)
        wait_until(lambda: there(directory, shards) == [0])  # it has gone on
        assert len(list(directory.glob("plans/*.plan"))) == 1
        rank.kill()
        rank.wait()
        wait_until(lambda: not list(members(rank.pid)))


def members(group):
    """Yield the processes of a group that have not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                yield int(path.parent.name)


batches = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True), max_size=30)


@given(batches, st.integers(1, 60), st.integers(0, 35))
def test_the_window_has_the_next_use_of_each_shard(names, max_bytes, num_advances):
    shards = [ShardInfo(f"{i}.tar", 1, 10, f"{i}" * 64) for i in range(6)]
    window = LookaheadWindow(shards, iter(names), max_bytes)
    for position in range(num_advances + 1):
        ahead = names[position:]
        assert window.extend() == bool(ahead)
        uses = window.next_uses()
        seen, expected = set(), []
        for batch, numbers in enumerate(ahead, start=position):
            if 10 * len(seen) > max_bytes:
                break
            expected += [(batch, shards[n]) for n in sorted(numbers) if n not in seen]
            seen |= set(numbers)
        assert uses[: len(expected)] == expected
        assert all(10 * len(seen) > max_bytes for _ in uses[len(expected) :])
        assert window.position == position
        window.advance()


def test_an_unusable_directory_is_logged_in_one_line(directory, shards, open_cached, capfd):
    directory.touch()
    store = open_cached(3)
    restart_fork_server()  # its children write to where it does
    with prefetching(store, shards, [[0], [1]], np.asarray):
        logged = ""
        deadline_s = time.monotonic() + DEADLINE_S
        while "no prefetching" not in logged:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
            logged += capfd.readouterr().err
    assert str(directory) in logged
    assert len(logged.splitlines()) == 1
