"""Shards as others make them, and images of every kind, sound and damaged."""

import hashlib
import json
import struct
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from data_sharding.format.sample_rule import SampleRule
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards, write_manifests

Member = dict[str, bytes]  # from extension to content


def photo(number: int, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> Image.Image:
    """Return an image that differs by number: a gradient, so that it survives JPEG."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [(x * (3 + number % 5) + y * (2 + c) + 17 * number) % 256 for c in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "jpeg", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(number: int, mode: str = "RGB") -> bytes:
    return encoded(photo(number, mode=mode))


def png(number: int, mode: str = "RGB") -> bytes:
    return encoded(photo(number, mode=mode), "png")


def bomb(size: int = 50_000) -> bytes:
    """Return a PNG of size x size pixels that is nothing but its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def by_webdataset(path: Path, samples: Mapping[str, Member]) -> Path:
    """Write a tar as webdataset does, with times and its own user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
    return path


def by_gnu_tar(path: Path, samples: Mapping[str, Member]) -> Path:
    """Write a tar as GNU tar does, of a directory with everything in it."""
    root = path.parent.parent / f"files of {path.stem}"
    for key, members in samples.items():
        for extension, data in members.items():
            file = root / f"{key}.{extension}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "--sort=name", "-cf", path, "-C", root, "."], check=True)
    return path


def index(url: str | Path, split: str | None = None, pattern: str = "*.tar") -> None:
    """Write the manifests of shards with integer labels."""
    shards = find_shards(str(url), split, pattern)
    manifests, _ = index_shards(shards, SampleRule())
    write_manifests(str(url), shards, manifests, force=True)


def labelled(labels: Sequence[object], extension: str = "cls", first: int = 0) -> dict[str, Member]:
    """Return a sample for each label; JSON for the extension `json`."""
    return {
        f"{first + i:04d}": {
            "jpg": jpeg(first + i),
            extension: (json.dumps(x) if extension == "json" else str(x)).encode(),
        }
        for i, x in enumerate(labels)
    }


def contents(root: Path) -> dict[str, str]:
    """Return the digest of every file below a directory."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    }
