"""Laws 1 to 3 over a faulty S3: the batches of a local data set, bit for bit, however they come."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from cli_runner import Tahoe
from s3_server import S3

from data_sharding.format.class_map import read_class_map
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.loading.datasets import TrainDataset
from data_sharding.loading.loader import Batch, iter_batches
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.sample_order import MicroBatchKey, SampleOrder
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.shard_store import open_store
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards
from data_sharding.transforms.crops import random_resized_crop
from data_sharding.transforms.pixel_transforms import PixelAugment
from data_sharding.transforms.progressive_resize import ImageSizeSchedule

MICROS, STEPS = 4, range(20, 24)  # an epoch has 22 steps
VIEW = partial(random_resized_crop, scale=(0.3, 1.0), ratio=(0.75, 1.33), hflip_prob=0.5)
ONE_SHARD, ALL = 260_000, 10**9


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the digits in 12 shards of 240 kB."""
    path = tmp_path_factory.mktemp("remote") / "digits"
    Tahoe(path.parent)("shard", "digits", str(path), "--samples-per-shard", "120")
    return path


@pytest.fixture(scope="module")
def remote(local: Path, s3_server: S3) -> str:
    s3_server.fail()
    s3_server.put(s3_server.url("digits"), local)
    return s3_server.url("digits")


def train_set(
    url: str, settings: CacheSettings | None, manifest: Manifest | None = None
) -> TrainDataset:
    manifest = manifest or read_manifest(url, "train")
    store = open_store(Location(url), "train", settings, manifest.rule)
    order = SampleOrder(manifest.shards.num_samples, 3, 64, 16, MICROS, block_size=64)
    shards = SplitReader("train", manifest, store)
    return TrainDataset(shards, order, VIEW, PixelAugment(()), ImageSizeSchedule(12), 1)


def batches(dataset: TrainDataset, ranks: int, workers: int) -> dict[MicroBatchKey, Batch]:
    """Return the micro-batches that the ranks load, each its own, one rank after the other."""
    loaded, each = dict[MicroBatchKey, Batch](), MICROS // ranks
    for rank in range(ranks):
        micros = range(rank * each, (rank + 1) * each)
        names = [MicroBatchKey(step, micro) for step in STEPS for micro in micros]
        for name, batch in zip(names, iter_batches(dataset, names, workers), strict=True):
            loaded[name] = batch._replace(images=batch.images.clone())
    return loaded


@pytest.fixture(scope="module")
def expected(local: Path) -> dict[MicroBatchKey, Batch]:
    return batches(train_set(str(local), None), 1, 0)


MARKS = {
    **dict.fromkeys(((2, 0, ALL), (1, 1, ALL)), ()),
    **dict.fromkeys(((1, 0, None), (4, 0, ALL), (2, 4, ONE_SHARD), (2, 1, None)), pytest.mark.slow),
}
CASES = [
    pytest.param(*case, marks=MARKS.get(case, (pytest.mark.slow, pytest.mark.long)))
    for ranks, workers in ((1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (2, 4))
    for max_bytes in (ONE_SHARD, ALL, None)
    for case in [(ranks, workers, max_bytes)]
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("ranks", "workers", "max_bytes"), CASES)
def test_remote_batches_are_the_local_ones(
    remote: str,
    s3_server: S3,
    expected: dict[MicroBatchKey, Batch],
    tmp_path: Path,
    ranks: int,
    workers: int,
    max_bytes: int | None,
) -> None:
    settings = max_bytes and CacheSettings(
        dir=str(tmp_path / "cache"),
        max_gb=max_bytes / 1e9,
        chunk_mb=0.06,
        request_timeout_s=2,
        retry_timeout_s=60,
    )
    s3_server.fail(errors=0.02, cuts=0.02, stalls=0.002, latency_s=0.002, stall_s=4)
    loaded = batches(train_set(remote, settings or None), ranks, workers)
    requests = s3_server.requests()
    s3_server.fail()
    assert any(request["fault"] for request in requests)
    assert loaded.keys() == expected.keys()
    for name, batch in expected.items():
        for ours, theirs in zip(loaded[name][:4], batch[:4], strict=True):
            assert torch.equal(ours, theirs)
        assert not loaded[name].bad
    if max_bytes == ONE_SHARD:  # which a reader exceeds where all there is is being fetched
        stored = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
        assert stored <= (1 + max(workers, 1)) * ONE_SHARD


@pytest.mark.slow
def test_batches_of_a_part_of_the_classes_are_the_local_ones(
    remote: str, local: Path, tmp_path: Path
) -> None:
    """Three of ten classes: 427 samples, 6 steps an epoch, on any ranks and from any store."""
    (tmp_path / "map.txt").write_text("8\n0\n3\n")
    chosen = read_class_map(str(tmp_path / "map.txt"))
    found = find_shards(str(local), "train")
    manifest = index_shards(found, SampleRule(image="png"), class_map=chosen)[0]["train"]
    assert manifest.num_samples == 427
    part = batches(train_set(str(local), None, manifest), 1, 0)
    cache = CacheSettings(dir=str(tmp_path / "cache"), max_gb=1)
    for ranks, settings in ((1, cache), (2, cache), (4, None)):
        loaded = batches(train_set(remote, settings, manifest), ranks, 0)
        assert loaded.keys() == part.keys()
        for name, batch in part.items():
            for ours, theirs in zip(loaded[name][:4], batch[:4], strict=True):
                assert torch.equal(ours, theirs)
    whole = read_manifest(str(local), "train")
    by_key = {key: label for key, label in _labels(local, whole) if whole.classes[label] in "803"}
    assert dict(_labels(local, manifest)) == {
        key: "803".index(whole.classes[label]) for key, label in by_key.items()
    }


def _labels(local: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    for shard in manifest.shards:
        with ShardReader(local / "train" / shard.name, shard, manifest.rule) as reader:
            for i in range(len(reader)):
                yield reader.key(i), manifest.parse_labels(reader.label_bytes(i))[0]
