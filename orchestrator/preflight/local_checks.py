"""Checks of a run on the machine that submits it."""

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest
from data_sharding.io import filesystem
from data_sharding.storage.cache import cache_directory, free_bytes
from orchestrator.config.schema import Config
from orchestrator.launch.checks.model_cost import ModelCost
from orchestrator.launch.create_run import run_path
from orchestrator.number_format import pluralize
from orchestrator.run.rundir import RunError, hold

DISTRIBUTION = "tahoe-orchestrator"
# The most fp32 copies of the weights: themselves, two moments of the optimizer, the EMA.
_COPIES_IN_CHECKPOINT = 4


@dataclass(frozen=True)
class CheckResult:
    """One line of the report; the message of a check that fails ends with the remedy."""

    status: Literal["ok", "warn", "fail"]
    name: str
    message: str


def check_versions() -> Iterator[CheckResult]:
    """Check the versions of Python and of each required package."""
    python, required_python = platform.python_version(), metadata(DISTRIBUTION)["Requires-Python"]
    problems, valid = [], [f"Python {python}"]
    if not SpecifierSet(required_python).contains(python, prereleases=True):
        problems.append(
            f"Python {python} runs, and Tahoe needs {required_python}: make a new environment"
        )
    for text in requires(DISTRIBUTION) or ():
        required = Requirement(text)
        if required.marker and not required.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(required.name)
        except PackageNotFoundError:
            problem = f"{required.name} is not installed, and Tahoe needs it"
        else:
            if required.specifier.contains(installed, prereleases=True):
                valid.append(f"{required.name} {installed}")
                continue
            problem = (
                f"{required.name} {installed} is installed, and Tahoe needs {required.specifier}"
            )
        problems.append(f"{problem}: pip install '{text}'")
    yield from (CheckResult("fail", "versions", problem) for problem in problems)
    yield CheckResult("ok", "versions", ", ".join(valid))


def check_data(config: Config) -> str:
    """Read the beginning of each split's first shard; return the time that takes."""
    data = config.data
    places = [(location, "train") for location in data.train_locations]
    times: dict[Location, list[str]] = {}
    for location, split in (*places, (data.location, "val")):
        times.setdefault(location, []).append(_read_first_shard(location, split))
    return "; ".join(text for where, texts in times.items() for text in (str(where), *texts))


def _read_first_shard(location: Location, split: str) -> str:
    manifest = read_manifest(location, split)
    shard = location.shard_url(split, manifest.shards[0].name)
    start_s = time.monotonic()
    try:
        fs, path = filesystem.store_of(shard)
        num_bytes = len(fs.cat_file(path, start=0, end=1 << 20))
    except Exception as error:  # every store raises its own kinds
        raise DataError(
            f"cannot read {shard}: {type(error).__name__}: {error}. Its manifest can be read",
            value=shard,
            hint="Check the credentials, or write the split again.",
        ) from None
    milliseconds = 1000 * (time.monotonic() - start_s)
    return (
        f"{split}: {pluralize(manifest.num_samples, 'image')} in "
        f"{pluralize(len(manifest.shards), 'shard')}, the "
        f"first {num_bytes / 1e3:,.0f} kB in {milliseconds:.0f} ms"
    )


def check_run_dir(config: Config) -> str:
    """Write and lock a file where the run directory will be; return its path."""
    run, parent = run_path(config), filesystem.nearest_existing(run_path(config))
    try:
        with tempfile.NamedTemporaryFile("w", dir=parent) as file:
            file.write("x")
            file.flush()
            with Path(file.name).open("a") as second:
                has_locks = hold(file) and not hold(second)
    except OSError as error:
        raise RunError(
            f"{run}: {parent} cannot be written: {error.strerror}",
            value=parent,
            hint="Choose another directory with runs_dir=DIR or run_dir=DIR.",
        ) from None
    if not has_locks:
        raise RunError(
            f"{run}: locks have no effect on {parent}, so two attempts would overwrite each "
            "other's checkpoints",
            value=parent,
            hint="Choose another file system with runs_dir=DIR, or have this one mounted with "
            "locks (Lustre: -o flock).",
        )
    return f"{run}: {parent} can be written and locked"


def check_disk(config: Config, cost: ModelCost | None) -> CheckResult:
    """Check whether the disk has space for the checkpoints of a run.

    The newest, the best, and the one that is being written exist at the same time.
    """
    url = config.checkpoint.url
    try:
        local = run_path(config) if url is None else filesystem.local_path(url)
    except Exception as error:  # fsspec: an unknown protocol, a missing package
        message = f"no checkpoint can be saved at {url}: {error}. Check checkpoint.url"
        return CheckResult("fail", "disk", message)
    if local is None:
        return CheckResult("ok", "disk", f"checkpoints go to {url}, whose space is not known here")
    directory = filesystem.nearest_existing(local)
    free = shutil.disk_usage(directory).free
    message = f"{free / 1e9:,.1f} GB free on {directory}"
    if cost is None:
        return CheckResult("warn", "disk", f"{message}; the size of a checkpoint is not known")
    needed = cost.num_params * 4 * _COPIES_IN_CHECKPOINT * (config.checkpoint.keep_last + 2)
    message += f", of which checkpoints need up to about {needed / 1e9:,.3g} GB"
    if needed > free:
        message += ". Saving would fail. Free some, or give another checkpoint.url"
        return CheckResult("fail", "disk", message)
    if every := config.checkpoint.keep_every_steps:
        message += f", and as much again for each {every:,} steps kept"
    return CheckResult("ok", "disk", message)


def check_cache_space(config: Config) -> Iterator[CheckResult]:
    """Check whether this machine has space for the cache, if the data are remote."""
    cache = config.data.cache
    if cache != "none" and not config.data.is_train_local:
        try:
            free = free_bytes(cache_directory(cache.dir))
        except DataError as error:
            yield CheckResult("fail", "cache", str(error))
        else:
            yield check_cache_sizes(cache.max_gb, {"this machine": free})


def check_cache_sizes(max_gb: float, free_bytes: Mapping[str, int]) -> CheckResult:
    """Check whether each node has space for the cache of remote shards."""
    fullest = min(free_bytes, key=lambda host: free_bytes[host])
    free_gb = free_bytes[fullest] / 1e9
    message = f"{free_gb:,.0f} GB free on {fullest}, and data.cache.max_gb={max_gb:g}"
    if free_gb < max_gb:
        message += ". The cache would fill the disk: reduce it, or change data.cache.dir"
        return CheckResult("warn", "cache", message)
    return CheckResult("ok", "cache", message)
