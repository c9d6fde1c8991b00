"""Samples of a data set of 10**10 are read where the plan says, from shards that really exist."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest, write_manifest
from data_sharding.format.shard_table import ShardTable
from data_sharding.format.tar_writer import TarStream
from data_sharding.loading.split_reader import SplitReader
from data_sharding.sampling.sample_order import SampleOrder
from data_sharding.storage.shard_store import open_store
from data_sharding.transforms.eval_protocol import parse_protocol

NUM_SHARDS, NUM_SAMPLES, NUM_CLASSES = 1_000_000, 10_000, 7


def make_shard(path: Path) -> None:
    png = BytesIO()
    Image.new("RGB", (4, 4)).save(png, "png")
    with path.open("wb") as file:
        tar = TarStream(file)
        for i in range(NUM_SAMPLES):
            tar.add(f"{i:05d}.png", png.getvalue())
            tar.add(f"{i:05d}.cls", str(i % NUM_CLASSES).encode())
        tar.finish()


@pytest.mark.slow
def test_any_step_is_read_from_the_shards_that_it_needs(tmp_path: Path) -> None:
    template = tmp_path / "template.tar"
    make_shard(template)
    names = np.array([f"s-{i:07d}.tar" for i in range(NUM_SHARDS)], dtype=np.bytes_)
    table = ShardTable(
        names.view(np.uint8).reshape(NUM_SHARDS, -1),
        np.full(NUM_SHARDS, NUM_SAMPLES),
        np.full(NUM_SHARDS, template.stat().st_size),
        np.zeros((NUM_SHARDS, 32), dtype=np.uint8),
    )
    classes = tuple(f"class {i}" for i in range(NUM_CLASSES))
    write_manifest(str(tmp_path), "train", Manifest(classes, table, {}))
    manifest = read_manifest(str(tmp_path), "train")
    order = SampleOrder(manifest.shards.num_samples, 0, 4096 * 32, 4096, 4096)
    store = open_store(Location(str(tmp_path)), "train", None, manifest.rule)
    reader = SplitReader("train", manifest, store)
    views, out = parse_protocol("center-4-of-4").views, np.zeros((1, 4, 4, 3), dtype=np.uint8)
    seen = set[int]()
    for step in 0, order.steps_per_epoch // 2, 10**6 * order.steps_per_epoch + 12345:
        ids = order.micro_batch(step, 4000).ids
        shards = reader.shards_of(ids).tolist()
        assert len(shards) <= 3
        for number in shards:
            path = tmp_path / "train" / manifest.shards[number].name
            if not path.exists():
                os.link(template, path)
        for sample in ids.tolist():
            label = sample % NUM_SAMPLES % NUM_CLASSES
            assert reader.read(sample, views, out).labels == (label,)
        seen |= {*ids.tolist()}
    assert len(seen) == 3 * 32
    assert max(seen) > 2**32  # beyond 32 bits
