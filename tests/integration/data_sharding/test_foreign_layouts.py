"""Shards as others pack them give the batches of shards written by Tahoe, and are only read."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import webdataset
from foreign_shards import Member, contents, jpeg
from http_server import serve as serve_web
from s3_server import S3

from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.format.sample_rule import SampleRule, make_rule
from data_sharding.format.tar_writer import TarStream
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

NUM_CLASSES, SAMPLES_PER_SHARD, MICROS = 5, 24, 4
NUM_SHARDS = {"train": 3, "val": 1}
VIEW = partial(random_resized_crop, scale=(0.3, 1.0), ratio=(0.75, 1.33), hflip_prob=0.5)

Samples = Mapping[str, Member]


def samples_of(split: str, number: int) -> Samples:
    """Return the samples of a shard, the same for all that pack them."""
    first = SAMPLES_PER_SHARD * (number + (100 if split == "val" else 0))
    return {
        f"{i:09d}": {"jpg": jpeg(i), "cls": str(i * 7 % NUM_CLASSES).encode()}
        for i in range(first, first + SAMPLES_PER_SHARD)
    }


def pack_as_tahoe(path: Path, samples: Samples) -> None:
    with path.open("wb") as file:
        tar = TarStream(file)
        for key, members in samples.items():
            for extension, data in members.items():
                tar.add(f"{key}.{extension}", data)
        tar.finish()


def pack_by_webdataset(path: Path, samples: Samples) -> None:
    number = re.findall(r"\d+", path.name)[0]
    pattern = str(path.with_name(path.name.replace(number, "%06d")))
    options = {"encoder": False, "verbose": 0}
    with webdataset.ShardWriter(pattern, start_shard=int(number), **options) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})


def pack_as_img2dataset(path: Path, samples: Samples) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, members in samples.items():
            meta = {"label": int(members["cls"]), "url": "https://a/b.jpg", "status": "success"}
            text = json.dumps(meta, indent=4).encode()
            writer.write({"__key__": key, "jpg": members["jpg"], "txt": b"a dog", "json": text})
    stats = {"count": len(samples) + 3, "successes": len(samples), "failed_to_download": 3}
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(stats))


def pack_as_timm(path: Path, samples: Samples) -> None:
    """Write a shard as in timm/imagenet-1k-wds, and count it in `_info.json`."""
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, members in samples.items():
            meta = json.dumps({"filename": key, "label": int(members["cls"])}).encode()
            writer.write({"__key__": f"n01440764_{key}", **members, "json": meta})
    file = path.with_name("_info.json")
    info = json.loads(file.read_text()) if file.exists() else {"splits": {}}
    name = "train" if "train" in path.name else "validation"
    empty = {"name": name, "filenames": [], "shard_lengths": [], "num_samples": 0}
    split = info["splits"].setdefault(name, empty)
    split["filenames"].append(path.name)
    split["shard_lengths"].append(len(samples))
    split["num_samples"] += len(samples)
    file.write_text(json.dumps(info))


def pack_by_tar(path: Path, samples: Samples, file_format: str) -> None:
    """Pack a directory of files by GNU tar; bsdtar writes its `posix` format."""
    root = path.parent.parent / f"files of {path.stem}"
    root.mkdir()
    for key, members in samples.items():
        for extension, data in members.items():
            (root / f"{key}.{extension}").write_bytes(data)
    options = ["--sort=name", f"--format={file_format}"]
    subprocess.run(["tar", *options, "-cf", path, "-C", root, "."], check=True)


class Layout(NamedTuple):
    """A way to pack samples: the names of the shards, and the label."""

    pack: Callable[[Path, Samples], None]
    train: str = "train-{000000..000002}.tar"
    val: str = "val-000000.tar"
    label: str = "cls"


LAYOUTS = {
    "webdataset": Layout(pack_by_webdataset),
    "img2dataset": Layout(
        pack_as_img2dataset, "train/{00000..00002}.tar", "val/00000.tar", "json:label"
    ),
    "timm": Layout(
        pack_as_timm,
        "imagenet1k-train-{0000..0002}.tar",
        "imagenet1k-validation-{00..00}.tar",
    ),
    "gnu": Layout(partial(pack_by_tar, file_format="gnu")),
    "posix": Layout(partial(pack_by_tar, file_format="posix")),
}
SLOW = {("timm", "s3", "headers"), ("img2dataset", "s3", "auto"), ("gnu", "disk", "auto")}
CELLS = [
    pytest.param(*cell, marks=pytest.mark.slow if cell in SLOW else pytest.mark.long)
    for layout in LAYOUTS
    for cell in (
        *((layout, "disk", what) for what in ("auto", "headers")),
        *((layout, "s3", what) for what in ("auto", "headers")),
        (layout, "http", "auto"),
    )
]


def write_layout(root: Path, layout: Layout) -> None:
    for split, pattern in (("train", layout.train), ("val", layout.val)):
        for number, name in enumerate(webdataset.shardlists.expand_urls(pattern)):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            layout.pack(path, samples_of(split, number))


@contextmanager
def stored(store: str, root: Path, s3: S3) -> Iterator[str]:
    """Yield the URL of a directory on disk, in an object store, or on a web server."""
    if store == "disk":
        yield str(root)
    elif store == "s3":
        s3.put(url := s3.url(root.parent.name), root)
        yield url
    else:
        with serve_web(root) as web:
            yield web.url


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
        assert digest == ("sampled" if what == "headers" else "whole")
        loaded = train_batches(location, tmp_path / "cache")
        if store == "s3":
            fs, path = filesystem.store_of(url)
            assert {file.removeprefix(f"{path}/") for file in fs.find(path)} == {*before}
    assert contents(tmp_path / "in") == before
    assert loaded.keys() == expected.keys()
    for key, batch in loaded.items():
        assert batch.images.equal(expected[key].images)
        assert batch.labels.tolist() == expected[key].labels.tolist()
