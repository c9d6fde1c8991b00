"""A mixture is read as its sources are: equal pixels and labels, from any store, on any ranks."""

import os
import resource
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_shards import by_webdataset, index, labelled
from numpy.typing import NDArray
from s3_server import S3

from data_sharding.errors import UnavailableShardError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.loading.datasets import BatchMeta, TrainDataset
from data_sharding.loading.loader import Batch, _sources, iter_batches
from data_sharding.loading.mixed_reader import MixedReader
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.mixed_order import mix_orders
from data_sharding.sampling.sample_order import MicroBatchKey, Part
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.crops import random_resized_crop
from data_sharding.transforms.pixel_transforms import PixelAugment
from data_sharding.transforms.progressive_resize import ImageSizeSchedule

QUOTAS, MICROS, STEPS = (12, 4), 4, range(3, 6)
SHARDS = {"a": (9, 11, 6), "b": (8, 5)}
BROKEN = (24, 25)  # the last samples of the first source
VIEW = partial(random_resized_crop, scale=(0.3, 1.0), ratio=(0.75, 1.33), hflip_prob=0.5)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of two data sets; shards of both have the same names."""
    root = tmp_path_factory.mktemp("mix")
    for name, sizes in SHARDS.items():
        samples = labelled([(i + ord(name)) % 3 for i in range(sum(sizes))])
        if name == "a":
            for number in BROKEN:
                samples[f"{number:04d}"]["jpg"] = b"no image"
        rest = iter(samples.items())
        for number, size in enumerate(sizes):
            path = root / name / "train" / f"shard-{number}.tar"
            by_webdataset(path, dict(islice(rest, size)))
        index(root / name)
    return root


def reader(where: str | Path, settings: CacheSettings | None = None) -> MixedReader:
    readers = []
    for name in SHARDS:
        manifest = read_manifest(f"{where}/{name}", "train")
        store = open_store(Location(f"{where}/{name}"), "train", settings, manifest.rule)
        readers.append(SplitReader(f"{name}/train", manifest, store))
    return MixedReader(readers)


def train_set(shards: MixedReader, num_parts: int = 1) -> TrainDataset:
    sizes = [source.manifest.shards.num_samples for source in shards.sources]
    order = mix_orders(sizes, QUOTAS, seed=5, num_lanes=8, num_micro_batches=MICROS, block_size=8)
    sizing = ImageSizeSchedule(12)
    return TrainDataset(shards, order, VIEW, PixelAugment(()), sizing, 3, num_parts=num_parts)


KEYS = [MicroBatchKey(step, micro) for step in STEPS for micro in range(MICROS)]


def write(dataset: TrainDataset, key: MicroBatchKey) -> tuple[NDArray[np.uint8], BatchMeta]:
    memory = np.zeros(dataset.max_bytes, dtype=np.uint8)
    meta = dataset.write_batch(key, memory)
    return memory.reshape(meta.shape), meta


def test_a_batch_has_the_samples_of_each_source_with_their_labels(local: Path) -> None:
    shards = reader(local)
    dataset, num_bad = train_set(shards), 0
    for key in KEYS:
        images, meta = write(dataset, key)
        drawn = dataset.order.micro_batch(key.step, key.micro).ids
        num_bad += len(meta.bad)
        for row, (asked, sample) in enumerate(zip(drawn.tolist(), meta.ids.tolist(), strict=True)):
            assert sample == (0 if asked in BROKEN else asked)  # of its source, not the next one's
            source, own = shards.find(sample)
            assert source is shards.sources[sample >= 26]
            first, i = source.locate(np.array([own]))[0]
            name = source.store.open(source.manifest.shards[first]).key(i)
            assert (int(name), meta.labels[row]) == (own, (own + ord("ab"[sample >= 26])) % 3)
            assert images[row].any()
    assert num_bad
    assert set(np.concatenate([*map(dataset.shards_of, KEYS)])) == set(range(shards.num_shards))
    for key in KEYS:  # each source's shards are fetched ahead from its own store
        (_, of_a), (_, of_b) = _sources(dataset)
        both = np.concatenate([of_a(key), of_b(key) + len(SHARDS["a"])])
        assert both.tolist() == dataset.shards_of(key).tolist()


def test_parts_of_a_mixed_micro_batch_add_up(local: Path) -> None:
    whole, shared = train_set(reader(local)), train_set(reader(local), num_parts=2)
    for key in KEYS[:4]:
        parts = [write(shared, key._replace(part=Part(number, 2)))[0] for number in range(2)]
        assert np.array_equal(np.concatenate(parts), write(whole, key)[0])


def batches(dataset: TrainDataset, ranks: int, workers: int) -> dict[MicroBatchKey, Batch]:
    """Return the micro-batches that the ranks load, each its own, one rank after the other."""
    loaded, each = dict[MicroBatchKey, Batch](), MICROS // ranks
    for rank in range(ranks):
        keys = [key for key in KEYS if key.micro // each == rank]
        for key, batch in zip(keys, iter_batches(dataset, keys, workers), strict=True):
            loaded[key] = batch._replace(images=batch.images.clone())
    return loaded


LONG = (pytest.mark.slow, pytest.mark.long)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("ranks", "workers", "is_cached"),
    [
        pytest.param(4, 0, False, marks=pytest.mark.slow),
        pytest.param(2, 1, True, marks=LONG),
        *(pytest.param(1, 4, is_cached, marks=LONG) for is_cached in (True, False)),
    ],
)
def test_batches_from_s3_are_those_of_the_disk(
    local: Path, s3_server: S3, tmp_path: Path, ranks: int, workers: int, is_cached: bool
) -> None:
    s3_server.fail()
    s3_server.put(s3_server.url("mix"), local)
    settings = CacheSettings(dir=str(tmp_path), max_gb=1e-4) if is_cached else None
    remote = batches(train_set(reader(s3_server.url("mix"), settings)), ranks, workers)
    expected = batches(train_set(reader(local)), 1, 0)
    for key, batch in expected.items():
        for ours, theirs in zip(remote[key][:4], batch[:4], strict=True):
            assert torch.equal(ours, theirs)
        assert list(remote[key].bad) == list(batch.bad)


@pytest.fixture
def few_files() -> Iterator[int]:
    """Let this process open few files; return how many."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    num = 4 * len([*Path("/proc/self/fd").iterdir()])
    resource.setrlimit(resource.RLIMIT_NOFILE, (num, limits[1]))
    try:
        yield num
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_all_stores_share_the_files_that_a_process_may_open(
    local: Path, tmp_path: Path, few_files: int
) -> None:
    shard = read_manifest(str(local / "a"), "train").shards[0]
    shards = [replace(shard, name=f"{number}.tar") for number in range(few_files // 4)]
    for copy in shards:
        os.link(local / "a" / "train" / shard.name, tmp_path / copy.name)
    location = Location(train=(f"{tmp_path}/*.tar",))
    stores = [open_store(location, "train", None, SampleRule()) for _ in range(6)]
    for copy in shards:
        for store in stores:
            assert len(store.open(copy)) == shard.num_samples
    with ExitStack() as opened:
        files = (opened.enter_context(ShardReader(tmp_path / "0.tar")) for _ in range(few_files))
        with pytest.raises(UnavailableShardError) as refused:
            deque(files, maxlen=0)
    assert "ulimit" in refused.value.hint
