"""Measure writing a folder of images as shards, beside webdataset, tar and the disk itself.

    python tests/benchmarks/writing.py [FOLDER] [--rounds 5] [--workers 2] [--dir DIR] [--images N]

FOLDER has train/CLASS/* and val/CLASS/*; without one, JPEGs of about 110 kB are made. Every round
runs every method, in a rotated order, in a process of its own; what is printed is the median of
each, and the median (least to most) of Tahoe's rate over theirs in the same round. All end durable:
every file is fsynced. Files are read from the page cache if they fit there. The disk's row writes
as many bytes of noise, in pieces of 128 kB, and reads nothing.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES, SAMPLES_PER_SHARD = 10, 1000
_NUM_DISTINCT = 200  # images, each written under many names
PIECE_BYTES = 128 << 10  # larger ones take longer in the page cache


def make_folder(root: Path, num_images: int) -> None:
    """Write JPEGs of noise of many scales: since they are decoded once, they have to be real."""
    images = [_photograph(number) for number in range(_NUM_DISTINCT)]
    for number in range(num_images):
        split = "val" if number % 20 == 0 else "train"
        path = root / split / f"class{number // 20 % NUM_CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images[number % _NUM_DISTINCT])


def _photograph(number: int) -> bytes:
    rng, size = np.random.default_rng(number), (500, 375)
    layers = [rng.normal(128, 60, (n, n, 3)).clip(0, 255).astype(np.uint8) for n in (3, 20, 200)]
    grown = [np.asarray(Image.fromarray(layer).resize(size), dtype=float) for layer in layers]
    file = BytesIO()
    pixels = np.mean(grown, axis=0).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(90, 97)))
    return file.getvalue()


def images_of(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*/*/*") if path.is_file())
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]


def tahoe(folder: Path, out: Path, num_workers: int, *, decode: bool = False) -> None:
    """Everything that `tahoe shard folder --no-decode` does: none of the others decodes."""
    from data_sharding.sources.folder import folder as class_folders
    from data_sharding.writing.dataset_writer import write_dataset
    from data_sharding.writing.shard_writer import ImageChecks

    write_dataset(
        class_folders(folder),
        str(out),
        seed=0,
        samples_per_shard=SAMPLES_PER_SHARD,
        checks=ImageChecks(decode=decode),
        num_workers=num_workers,
    )


def tahoe_one_process(folder: Path, out: Path, num_workers: int) -> None:
    """The same in a single process, as webdataset's is."""
    tahoe(folder, out, 1)


def tahoe_decoding(folder: Path, out: Path, num_workers: int) -> None:
    """Everything that `tahoe shard folder` does."""
    tahoe(folder, out, num_workers, decode=True)


def shard_writer(folder: Path, out: Path, num_workers: int) -> None:
    """webdataset.ShardWriter, in a single process as its documentation has it."""
    import webdataset

    classes = {path.name: label for label, path in enumerate(sorted(folder.glob("train/*")))}
    out.mkdir()
    pattern = str(out / "shard-%06d.tar")
    with webdataset.ShardWriter(
        pattern, maxcount=SAMPLES_PER_SHARD, post=make_durable, verbose=0
    ) as writer:
        for number, path in enumerate(images_of(folder)):
            label = classes[path.parent.name]
            writer.write({"__key__": f"{number:08d}", "jpg": path.read_bytes(), "cls": label})


def plain_tar(folder: Path, out: Path, num_workers: int) -> None:
    """GNU tar of the folder into one file: no shuffle, no labels, no digests."""
    out.mkdir()
    subprocess.run(["tar", "-cf", out / "all.tar", "-C", folder, "."], check=True)
    make_durable(str(out / "all.tar"))


def disk(folder: Path, out: Path, num_workers: int) -> None:
    """As many bytes as the folder has."""
    left, piece = sum(path.stat().st_size for path in images_of(folder)), os.urandom(PIECE_BYTES)
    out.mkdir()
    with (out / "bytes").open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(piece[:left])
    make_durable(str(out / "bytes"))


def make_durable(path: str) -> None:
    with Path(path).open("rb") as file:
        os.fsync(file.fileno())


METHODS: dict[str, Callable[[Path, Path, int], None]] = {
    "tahoe": tahoe,
    "tahoe_one_process": tahoe_one_process,
    "tahoe_decoding": tahoe_decoding,
    "shard_writer": shard_writer,
    "plain_tar": plain_tar,
    "disk": disk,
}


def run_one(method: str, folder: Path, out: Path, num_workers: int) -> None:
    """Print the seconds that a method takes; modules are imported before the clock starts."""
    import webdataset  # noqa: F401

    import data_sharding.sources.base
    import data_sharding.writing.dataset_writer  # noqa: F401

    start_s = time.perf_counter()
    METHODS[method](folder, out, num_workers)
    print(time.perf_counter() - start_s)


def measure(method: str, folder: Path, scratch: Path, num_workers: int) -> float:
    """Return the seconds of one run of a method in a process of its own."""
    os.sync()
    out = scratch / "out"
    command = [sys.executable, __file__, str(folder), "--only", method, "--dir", str(out)]
    try:
        done = subprocess.run(
            [*command, "--workers", str(num_workers)],
            check=True, stdout=subprocess.PIPE, text=True, timeout=3600,
        )  # fmt: skip
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--images", type=int, default=16000, help="to be made without a FOLDER")
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run_one(options.only, options.folder, options.dir, options.workers)
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        folder = options.folder or Path(scratch, "images")
        if options.folder is None:
            make_folder(folder, options.images)
        compare(folder, Path(scratch), options.rounds, options.workers)


def compare(folder: Path, scratch: Path, rounds: int, num_workers: int) -> None:
    sizes = [path.stat().st_size for path in images_of(folder)]
    rates: dict[str, list[float]] = {name: [] for name in METHODS}
    names = list(METHODS)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            rates[name].append(len(sizes) / measure(name, folder, scratch, num_workers))
        print(f"round {number + 1}:", {n: round(r[-1]) for n, r in rates.items()}, flush=True)
    print(f"\n{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"{len(sizes):,} files of {sum(sizes) / len(sizes) / 1e3:.0f} kB on average, {rounds} "
        f"interleaved rounds, {num_workers} processes"
    )
    for name, found in rates.items():
        ratios = sorted(a / b for a, b in zip(rates["tahoe"], found, strict=True))
        rate = statistics.median(found)
        print(
            f"{name:20}{rate:10,.0f} images/s {rate * sum(sizes) / len(sizes) / 1e6:8,.0f} MB/s   "
            f"tahoe is {statistics.median(ratios):.2f} x  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
