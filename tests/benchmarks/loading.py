"""Measure loading of real images for training, beside what others use.

    python tests/benchmarks/loading.py IMAGES [--rounds 8] [--workers 2] [--dir D] [--stacks A]

IMAGES is a tar of photographs named `<class>_<name>.JPEG`, or a directory of class folders. They
are repeated until there are 8,000, and written once in the form that each stack wants. Every round
runs every stack in a process of its own, in a rotated order; what is printed is the median of each,
and the median (least to most) of Tahoe's rate over theirs in the same round. Peers that Tahoe does
not depend on are installed in virtual environments under DIR that see Tahoe's own packages.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from functools import partial
from pathlib import Path

from tests.benchmarks.rounds import print_machine, ratios, take_turns

PACKAGES = {
    "tahoe": [],
    "webdataset_pil": [],
    "imagefolder_pil": [],
    "mosaic": ["mosaicml-streaming"],
    "litdata": ["litdata"],
    "dali": ["nvidia-dali-cuda130"],
    "webdataset_simplejpeg": ["opencv-python-headless"],
}
NUM_IMAGES, NUM_SHARDS = 8000, 8
PEERS = Path(__file__).with_name("loading_peers.py")
DATA = Path(tempfile.gettempdir(), "tahoe-bench")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}


def make_data(images: Path, data: Path) -> None:
    """Write the images as class folders and as Tahoe's shards, if they are not there."""
    if not (data / "folder").exists():
        make_folders(images, data / "folder")
    make_shards(data / "folder", data / "shards")


def make_folders(source: Path, folder: Path) -> None:
    """Lay the images out in class folders, each as often as it takes to have enough."""
    images = list(_images(source))
    copies = -(-NUM_IMAGES // len(images))
    for number in range(copies):
        for label, name, data in images:
            path = folder / "train" / label / f"{number}-{Path(name).stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    label, name, data = images[0]
    (folder / "val" / label).mkdir(parents=True)
    (folder / "val" / label / "0.jpg").write_bytes(data)


def _images(source: Path) -> list[tuple[str, str, bytes]]:
    if source.is_dir():
        paths = sorted(path for path in source.glob("*/*") if path.is_file())
        return [(path.parent.name, path.name, path.read_bytes()) for path in paths]
    with tarfile.open(source) as tar:
        found = []
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                name = Path(member.name).name
                found.append((name.partition("_")[0], name, file.read()))
    return found


def make_shards(folder: Path, url: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "orchestrator.cli.main",
        "shard",
        "folder",
        str(folder),
        str(url),
    ]
    per_shard = -(-NUM_IMAGES // NUM_SHARDS)
    subprocess.run([*command, "--samples-per-shard", str(per_shard)], check=True)


def python_of(stack: str, directory: Path) -> str:
    """Return the interpreter of a stack; its packages are installed if they are not there."""
    if not PACKAGES[stack]:
        return sys.executable
    home = directory / "venvs" / stack
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        ours = sysconfig.get_paths()["purelib"]
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (home / "lib" / version / "site-packages" / "tahoe.pth").write_text(ours + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES[stack]], check=True)
    return str(python)


def measure(stack: str, python: str, data: Path, num_workers: int) -> float:
    """Return the images a second of one run of a stack."""
    command = [python, str(PEERS), stack, str(data), str(num_workers)]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise SystemExit(f"{stack} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=DATA)
    parser.add_argument("--stacks", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    options = parser.parse_args()
    data = options.dir
    make_data(options.images, data)
    pythons = {}
    for stack in dict.fromkeys(("tahoe", *options.stacks)):
        pythons[stack] = python_of(stack, data)
        ready = data / f"{stack}.ready"
        if not ready.exists():
            subprocess.run([pythons[stack], str(PEERS), "prepare", stack, str(data)], check=True)
            ready.touch()
    stacks = {
        name: partial(measure, name, pythons[name], data, options.workers) for name in pythons
    }
    rates = take_turns(stacks, options.rounds)
    print_machine()
    print(f"{options.rounds} interleaved rounds, {options.workers} workers, batches of 64 as bytes")
    for stack, found in rates.items():
        rate = statistics.median(found)
        print(f"{stack:24}{rate:8,.0f} images/s   tahoe is {ratios(rates['tahoe'], found)} x")


if __name__ == "__main__":
    main()
