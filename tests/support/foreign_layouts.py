"""The same samples in the layouts of others, on a disk, in an object store, on a web server."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import webdataset
from foreign_shards import Member, jpeg
from http_server import serve as serve_web
from s3_server import S3

from data_sharding.format.tar_writer import TarStream

NUM_CLASSES, SAMPLES_PER_SHARD = 5, 24
NUM_SHARDS = {"train": 3, "val": 1}

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
