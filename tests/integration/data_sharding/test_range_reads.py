"""Samples straight from a server: the same as those of a mapped shard."""

import hashlib
import io
import multiprocessing
import pickle
import tarfile
import tempfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from s3_server import make_shards

from data_sharding.errors import BadSample, ShardError, UnavailableError
from data_sharding.format.labels import LabelRule
from data_sharding.format.location import Location
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io.download import DownloadSettings
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.range_reads import RangeReadStore
from data_sharding.storage.shard_store import LocalStore, open_store

QUICK = DownloadSettings(
    max_concurrent_requests=4,
    chunk_mb=0.1,
    request_timeout_s=2,
    retry_timeout_s=30,
    max_hedged_fraction=0,  # requests are counted
)
LABELS = SampleRule()


@pytest.fixture(scope="module")
def shards(s3_server, source):
    infos = make_shards(source, 3, 12, 30_000)
    s3_server.put(s3_server.url("stream"), source)
    return infos


@pytest.fixture(autouse=True)
def _temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for other processes


@pytest.fixture
def store(s3):
    return RangeReadStore(s3.url("stream"), LABELS, QUICK)


def sample(store, shard, i):
    reader = store.open(shard)
    try:
        image = bytes(reader.image(i))
    except BadSample as error:
        image = str(error)
    return image, reader.label_bytes(i), reader.key(i)


def all_samples(shards):
    rng = np.random.default_rng(0)
    places = [(shard, i) for shard in shards for i in range(shard.num_samples)]
    return [places[k] for k in rng.permutation(len(places))]


def ranges(s3):
    return sorted((r["start"], r["stop"]) for r in s3.requests() if r["method"] == "GET")


@pytest.mark.parametrize("faults", [{}, {"errors": 0.15, "cuts": 0.15, "latency_s": 0.002}])
def test_a_streamed_sample_is_the_mapped_one(s3, store, source, shards, faults):
    s3.fail(**faults)
    local = LocalStore(str(source), LABELS)
    places = all_samples(shards)
    for start in range(0, len(places), 8):
        batch = places[start : start + 8]
        store.prefetch_samples(batch)
        for shard, i in batch:
            assert sample(store, shard, i) == sample(local, shard, i)
        store.close_evicted()
    assert [len(store.open(shard)) for shard in shards] == [12, 12, 12]


def odd_tar(path, form):
    """Write members that make a walk difficult: long names, times, strangers, unknown images."""
    with tarfile.open(path, "w", format=form) as tar:

        def add(name, data, **headers):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), headers
            tar.addfile(info, io.BytesIO(data))

        add("__readme__/about.txt", b"not a sample")
        for i in range(6):
            long = "d" * 120 + "/" if i == 3 else ""
            times = {"mtime": "1234.5678"} if i % 2 else {}
            add(f"{long}{i}.json", b"{}", **times)
            add(f"{long}{i}.xyz" if i == 2 else f"{long}{i}.jpg", bytes([i]) * 700 * i, **times)
            add(f"{long}{i}.cls", str(i).encode())
            add(f"notes-{i}", b"without an extension")
    data = path.read_bytes()
    return ShardInfo(path.name, 6, len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "labels", [LABELS, SampleRule(LabelRule("none")), SampleRule(LabelRule("single", "json"))]
)
def test_a_streamed_sample_is_the_mapped_one_in_any_tar_dialect(s3, tmp_path, form, labels):
    directory = tmp_path / "odd"
    directory.mkdir()
    shard = odd_tar(directory / f"odd-{form}.tar", form)
    s3.put(s3.url("odd"), directory)
    store, local = RangeReadStore(s3.url("odd"), labels, QUICK), LocalStore(str(directory), labels)
    places = [(shard, i) for i in range(6)]
    store.prefetch_samples(places[::2])  # the others come one by one
    for _, i in places:
        assert sample(store, shard, i) == sample(local, shard, i)
    assert sample(store, shard, 2)[0].startswith("has no image of a known kind")


def test_samples_of_chosen_classes_are_the_same_streamed_cached_and_local(s3, tmp_path):
    directory = tmp_path / "chosen"
    directory.mkdir()
    shard = replace(odd_tar(directory / "odd.tar", tarfile.PAX_FORMAT), num_samples=3)
    s3.put(s3.url("chosen"), directory)
    rule = SampleRule(image="jpg;xyz", class_labels=((4,), (2, 1)))
    cache = CacheSettings(dir=tmp_path / "cache", max_gb=1)
    local, location = LocalStore(str(directory), rule), Location(train=(s3.url("chosen"),))
    cached, streamed = (open_store(location, "train", c, rule) for c in (cache, None))
    expected = [sample(local, shard, i) for i in range(3)]
    assert [(len(image), label) for image, label, _ in expected] == [
        (700, b"1"),
        (1400, b"2"),
        (2800, b"4"),
    ]
    assert [sample(cached, shard, i) for i in range(3)] == expected
    bounds = streamed.open(shard).ranges
    s3.forget()
    streamed.prefetch_samples([(shard, i) for i in range(3)])
    assert [sample(streamed, shard, i) for i in range(3)] == expected
    assert ranges(s3) == [(bounds[0, 0], bounds[1, 1]), tuple(bounds[2])]  # without sample 3
    other = SampleRule(class_labels=((5,), (2, 1)))
    again = LocalStore(str(directory), other), open_store(location, "train", None, other)
    assert [[store.open(shard).label_bytes(i) for i in range(3)] for store in again] == [
        [b"1", b"2", b"5"]
    ] * 2


def test_only_the_requested_samples_are_fetched(s3, store, shards):
    bounds = store.open(shards[0]).ranges
    s3.forget()
    store.prefetch_samples([(shards[0], i) for i in (7, 2, 9)])
    for i in 2, 7, 9, 2:
        sample(store, shards[0], i)
    assert ranges(s3) == [tuple(bounds[i]) for i in (2, 7, 9)]


def test_adjacent_samples_are_one_request_up_to_a_chunk(s3, store, shards):
    bounds = store.open(shards[0]).ranges
    s3.forget()
    store.prefetch_samples([(shards[0], i) for i in range(7)])
    assert ranges(s3) == [
        (bounds[a, 0], bounds[b - 1, 1]) for a, b in ((0, 2), (2, 4), (4, 6), (6, 7))
    ]


def test_an_image_stays_valid(store, source, shards):
    image = store.open(shards[0]).image(3)
    store.prefetch_samples([(shards[1], 0)])
    store.open(shards[0]).close()
    assert bytes(image) == sample(LocalStore(str(source), LABELS), shards[0], 3)[0]


def test_the_offsets_are_found_once_a_node(s3, source, shards):
    """By four processes at the same time."""
    s3.fail(latency_s=0.01)
    stores = [
        open_store(Location(train=(s3.url("stream"),)), "train", None, LABELS) for _ in range(4)
    ]
    assert isinstance(stores[0], RangeReadStore)
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        tasks = [
            pool.apply_async(RangeReadStore.prefetch_samples, (s, [(shards[0], 1)])) for s in stores
        ]
        for task in tasks:
            task.get(timeout=60)
    sizes = Counter(r["method"] for r in s3.requests())
    assert sizes == {"HEAD": 1, "GET": 1 + 4}  # the shard once, and its sample four times


def test_a_pickled_store_reads_the_same_samples(s3, store, source, shards):
    store.prefetch_samples([(shards[0], 0)])
    copy = pickle.loads(pickle.dumps(store))
    assert sample(copy, shards[0], 0) == sample(LocalStore(str(source), LABELS), shards[0], 0)


def test_a_missing_or_wrong_shard_is_an_error(store, shards):
    with pytest.raises(ShardError, match=r"s3://bucket/stream/none.tar"):
        store.open(replace(shards[0], name="none.tar", sha256="1" * 64))
    with pytest.raises(ShardError, match=shards[0].sha256):
        store.open(replace(shards[0], sha256="0" * 64))
    with pytest.raises(ShardError, match=r"s3://bucket/stream/shard-000000.tar.* 12 "):
        store.open(replace(shards[0], num_samples=13))


def test_a_shard_that_is_replaced_while_it_is_read_is_an_error(s3, tmp_path, shards):
    directory = tmp_path / "changing"
    (shard,) = make_shards(directory, 1, 5, 9_000)
    s3.put(s3.url("changing"), directory)
    store = RangeReadStore(s3.url("changing"), LABELS, QUICK)
    sample(store, shard, 1)
    (directory / shard.name).write_bytes(b"other" * (shard.num_bytes // 5))
    s3.put(s3.url("changing"), directory)
    with pytest.raises(ShardError, match="sample 2 ") as raised:
        sample(store, shard, 2)
    assert raised.value.value == s3.url("changing", "shard-000000.tar")
    assert raised.value.value in raised.value.problem


def test_a_directory_that_cannot_be_used_is_an_error(store, shards, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UnavailableError) as raised:
        store.open(shards[0])
    assert "TMPDIR" in raised.value.hint


def put(s3, tmp_path, name, data, num_samples):
    (tmp_path / "put").mkdir(exist_ok=True)
    (tmp_path / "put" / name).write_bytes(data)
    s3.put(s3.url("stream"), tmp_path / "put")
    return ShardInfo(name, num_samples, len(data), hashlib.sha256(data).hexdigest())


def test_concatenated_tars_are_one_shard(s3, store, source, shards, tmp_path):
    data = b"".join((source / shard.name).read_bytes() for shard in shards[:2])
    shard = put(s3, tmp_path, "two.tar", data, 24)
    samples = [sample(store, shard, i) for i in range(24)]
    assert samples == [sample(store, part, i) for part in shards[:2] for i in range(12)]


def test_hard_links_cannot_be_streamed(s3, store, tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, target in ("a.jpg", ""), ("a.cls", ""), ("b.jpg", "a.jpg"), ("b.cls", "a.cls"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.LNKTYPE if target else b"0"), target
            tar.addfile(member)
    shard = put(s3, tmp_path, "linked.tar", file.getvalue(), 2)
    with pytest.raises(ShardError, match=r"linked\.tar holds hard links") as raised:
        store.open(shard)
    assert "`cache.max_gb`" in raised.value.hint
