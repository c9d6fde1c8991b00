"""What can be known of a run before it is submitted, from the machine that submits it."""

import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from data_sharding.errors import DataError
from data_sharding.format.manifest import read_manifest
from data_sharding.io import filesystem
from data_sharding.storage.cache import cache_directory, free_bytes
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.jobs.submit import job_request, render_job_script
from orchestrator.launch.checks.model_cost import ModelCost
from orchestrator.launch.code_snapshot import current_python_path
from orchestrator.launch.create_run import run_path
from orchestrator.number_format import pluralize
from orchestrator.preflight.check_result import CheckResult
from orchestrator.preflight.node_checks import check_node_caches
from orchestrator.run.rundir import RunDir, RunError, hold
from slurm import client
from slurm.errors import SlurmError

DISTRIBUTION = "tahoe-orchestrator"
# Of the fp32 weights, if there is everything: themselves, two moments of an optimizer, an average.
_COPIES_IN_CHECKPOINT = 4


def check_versions() -> Iterator[CheckResult]:
    """Yield whether Python and each package are of a version that Tahoe was written for."""
    python, wanted_python = platform.python_version(), metadata(DISTRIBUTION)["Requires-Python"]
    if not SpecifierSet(wanted_python).contains(python, prereleases=True):
        told = f"Python {python} runs, and Tahoe needs {wanted_python}: make a new environment"
        yield CheckResult("fail", "versions", told)
    well = [f"Python {python}"]
    for text in requires(DISTRIBUTION) or ():
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            told = f"{wanted.name} is not installed, and Tahoe needs it: pip install '{text}'"
            yield CheckResult("fail", "versions", told)
            continue
        if wanted.specifier.contains(found, prereleases=True):
            well.append(f"{wanted.name} {found}")
        else:
            yield CheckResult(
                "fail",
                "versions",
                f"{wanted.name} {found} is installed, and Tahoe needs {wanted.specifier}: pip "
                f"install '{text}'",
            )
    yield CheckResult("ok", "versions", ", ".join(well))


def check_data(config: Config) -> str:
    """Return how the first shard of each split begins to be read.

    Raises:
        DataError: it is not.
    """
    told = []
    for split in ("train", "val"):
        manifest = read_manifest(config.data.url, split)
        shard = filesystem.join(config.data.url, split, manifest.shards[0].name)
        start_s = time.monotonic()
        try:
            fs, path = filesystem.store_of(shard)
            num_bytes = len(fs.cat_file(path, start=0, end=1 << 20))
        except Exception as error:  # every store raises its own kinds
            raise DataError(
                f"cannot read {shard}: {type(error).__name__}: {error}. The manifest is there and "
                "the shard is not to be had: check credentials, or write the split again."
            ) from None
        milliseconds = 1000 * (time.monotonic() - start_s)
        told.append(
            f"{split}: {pluralize(manifest.num_samples, 'image')} in "
            f"{pluralize(len(manifest.shards), 'shard')}, the "
            f"first {num_bytes / 1e3:,.0f} kB in {milliseconds:.0f} ms"
        )
    return f"{config.data.url}; {'; '.join(told)}"


def check_run_dir(config: Config) -> str:
    """Return where the run directory goes, once a file and a lock could be had there.

    Raises:
        RunError: they could not.
    """
    run, place = run_path(config), filesystem.nearest_existing(run_path(config))
    try:
        with tempfile.NamedTemporaryFile("w", dir=place) as one, Path(one.name).open("a") as two:
            one.write("x")
            one.flush()
            holds = hold(one) and not hold(two)
    except OSError as error:
        raise RunError(
            f"{run}: {place} cannot be written: {error.strerror}. No run can lie there. Choose "
            "another place with runs_dir=DIR or run_dir=DIR."
        ) from None
    if not holds:
        raise RunError(
            f"{run}: locks mean nothing on {place}: two at a time were given. Two attempts would "
            "overwrite each other's checkpoints. Choose another file system with runs_dir=DIR, or "
            "have this one mounted with locks (Lustre: -o flock)."
        )
    return f"{run}: {place} can be written and locked"


def check_disk(config: Config, cost: ModelCost | None) -> CheckResult:
    """Return whether the checkpoints of a run find room.

    The newest, the best, and the one that is being written lie there at the same time.
    """
    url = config.checkpoint.url
    try:
        local = run_path(config) if url is None else filesystem.local_path(url)
    except Exception as error:  # fsspec: an unknown protocol, a package that it needs
        told = f"no checkpoint can be saved at {url}: {error}. Check checkpoint.url"
        return CheckResult("fail", "disk", told)
    if local is None:
        return CheckResult("ok", "disk", f"checkpoints go to {url}, whose room is not known here")
    place = filesystem.nearest_existing(local)
    free = shutil.disk_usage(place).free
    told = f"{free / 1e9:,.1f} GB free on {place}"
    if cost is None:
        return CheckResult("warn", "disk", f"{told}; how much the checkpoints need is not known")
    needed = cost.num_params * 4 * _COPIES_IN_CHECKPOINT * (config.checkpoint.keep_last + 2)
    told += f", of which checkpoints need up to about {needed / 1e9:,.3g} GB"
    if needed > free:
        told += ". Saving would fail. Free some, or give another checkpoint.url"
    elif config.checkpoint.keep_every_steps:
        told += f", and as much again for each {config.checkpoint.keep_every_steps:,} steps kept"
    return CheckResult("fail" if needed > free else "ok", "disk", told)


def check_cache_space(config: Config) -> Iterator[CheckResult]:
    """Yield whether this machine can keep remote shards, and has room, if there are any."""
    wanted = config.data.cache
    if wanted != "none" and filesystem.local_path(config.data.url) is None:
        try:
            free = free_bytes(cache_directory(wanted.dir))
        except DataError as error:
            yield CheckResult("fail", "cache", str(error))
            return
        yield check_node_caches(wanted.max_gb, {"this machine": free})


def check_queue(config: Config) -> str:
    """Return what Slurm says of when a job like this would start.

    Raises:
        SlurmError, ConfigError: it would not take it.
    """
    job = job_request(RunDir(run_path(config)), config, current_python_path())
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
        file.write(render_job_script(job))
        file.flush()
        return client.test_submission(Path(file.name))


CHECK_ERRORS = (ConfigError, DataError, RunError, SlurmError)
