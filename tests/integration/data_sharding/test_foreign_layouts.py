"""Shards as others pack them give the batches of shards written by Tahoe, and are only read."""

from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from foreign_layouts import LAYOUTS, Layout, pack_as_tahoe, stored, write_layout
from foreign_shards import contents
from s3_server import S3

from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule, make_rule
from data_sharding.io import filesystem
from data_sharding.loading.datasets import TrainDataset
from data_sharding.loading.loader import Batch, iter_batches
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.sample_order import MicroBatchKey, SampleOrder
from data_sharding.scanning.scan import ReadOptions
from data_sharding.storage.cache import CacheSettings
from data_sharding.storage.shard_store import open_store
from data_sharding.tools.expand_patterns import find_named_shards
from data_sharding.tools.index import index_shards, write_manifests
from data_sharding.transforms.crops import random_resized_crop
from data_sharding.transforms.pixel_transforms import PixelAugment
from data_sharding.transforms.progressive_resize import ImageSizeSchedule

MICROS = 4
VIEW = partial(random_resized_crop, scale=(0.3, 1.0), ratio=(0.75, 1.33), hflip_prob=0.5)
SLOW = {("timm", "s3", "headers"), ("img2dataset", "s3", "auto"), ("gnu", "disk", "auto")}
CELLS = [
    pytest.param(*cell, marks=[pytest.mark.slow, *[pytest.mark.long] * (cell not in SLOW)])
    for layout in LAYOUTS
    for cell in (
        *((layout, "disk", what) for what in ("auto", "headers")),
        *((layout, "s3", what) for what in ("auto", "headers")),
        (layout, "http", "auto"),
    )
]


def train_batches(location: Location, cache: Path) -> dict[MicroBatchKey, Batch]:
    """Return the micro-batches of an epoch."""
    manifest = read_manifest(location, "train")
    settings = CacheSettings(dir=str(cache), max_gb=1)
    store = open_store(location, "train", settings, manifest.rule)
    order = SampleOrder(manifest.shards.num_samples, 3, 16, 8, MICROS, block_size=16)
    dataset = TrainDataset(
        SplitReader("train", manifest, store),
        order,
        VIEW,
        PixelAugment(()),
        ImageSizeSchedule(12),
        1,
    )
    keys = [MicroBatchKey(step, micro) for step in range(4) for micro in range(MICROS)]
    loaded = zip(keys, iter_batches(dataset, keys, 0), strict=True)
    return {key: batch._replace(images=batch.images.clone()) for key, batch in loaded}


def index(location: Location, rule: SampleRule, what: Literal["auto", "whole", "headers"]) -> None:
    shards = find_named_shards(location)
    manifests, _ = index_shards(shards, rule, ReadOptions(what=what))
    write_manifests(location, shards, manifests, force=False)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[MicroBatchKey, Batch]:
    """Return the batches of the same samples in the same shards, written by Tahoe."""
    root = tmp_path_factory.mktemp("tahoe")
    write_layout(root / "in", layout := Layout(pack_as_tahoe))
    location = Location(train=(f"{root}/in/{layout.train}",), val=(f"{root}/in/{layout.val}",))
    index(location, SampleRule(), "whole")
    return train_batches(location, root / "cache")


@pytest.mark.parametrize(("name", "store", "what"), CELLS)
def test_layouts_of_others_give_the_same_batches(
    s3_server: S3,
    expected: dict[MicroBatchKey, Batch],
    tmp_path: Path,
    name: str,
    store: str,
    what: Literal["auto", "headers"],
) -> None:
    s3_server.fail()
    layout = LAYOUTS[name]
    write_layout(tmp_path / "in", layout)
    before = contents(tmp_path / "in")
    with stored(store, tmp_path / "in", s3_server) as url:
        location = Location(
            train=(f"{url}/{layout.train}",),
            val=(f"{url}/{layout.val}",),
            manifest=str(tmp_path / "manifests"),
        )
        index(location, make_rule(None, layout.label), what)
        (digest,) = {shard.digest for shard in read_manifest(location, "train").shards}
        assert digest == ("headers" if what == "headers" else "whole")
        loaded = train_batches(location, tmp_path / "cache")
        if store == "s3":
            fs, path = filesystem.store_of(url)
            assert {file.removeprefix(f"{path}/") for file in fs.find(path)} == {*before}
    assert contents(tmp_path / "in") == before
    assert loaded.keys() == expected.keys()
    for key, batch in loaded.items():
        assert batch.images.equal(expected[key].images)
        assert batch.labels.tolist() == expected[key].labels.tolist()
