"""One shard: some samples of a source, inspected and written, and a record of the result.

A shard depends on the source, the settings and its members alone, so any process can write it, and
write it again after being killed. One sample is in memory at a time.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from data_sharding.errors import BadSample, DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_reader import TooLarge
from data_sharding.format.tar_writer import TarStream
from data_sharding.image.heif import known_format
from data_sharding.image.inspect import inspect_image
from data_sharding.image.open_image import MAX_PIXELS
from data_sharding.image.quality_report import QualityFindings
from data_sharding.image.resize import ResizeSettings, widened
from data_sharding.io import filesystem
from data_sharding.io.process_pool import ProgressFn, StoppedError
from data_sharding.sources.base import Sample, Source
from data_sharding.writing.journal import Journal

RETRY_HINT = "The same command continues where this one stopped."

# Label rules of written shards, whatever the rule of the source.
STORED_LABELS = {
    "single": LabelRule(),
    "multi": LabelRule(kind="multi", extension="json"),
    "none": LabelRule(kind="none"),
}


@dataclass(frozen=True)
class ImageChecks:
    """Treatment of the images on their way; all findings go into `quality_report.json`.

    Args:
        max_bad_fraction: fraction of the files that may be dropped, corrupt or too large.
        shrink: resizing of large images; None stores all as they are.
        dedupe: whether training images are dropped that occurred before or are in val.
        drop_damaged: whether images that decode with damage are dropped; they are named either way.
        decode: whether every image is decoded completely, or only its header and end are checked.
        bit_depth: bits in use of 16-bit grey values; None for all.
    """

    max_bad_fraction: float = 0.01
    shrink: ResizeSettings | None = None
    dedupe: bool = False
    drop_damaged: bool = False
    decode: bool = True
    bit_depth: int | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """JSON values that identify the result; settings at their defaults are left out."""
        facts = {
            "inspected": True,
            "shrink": self.shrink and self.shrink.facts,
            "bit_depth": self.bit_depth,
            "dedupe": self.dedupe,
            "drop_damaged": self.drop_damaged,
            "trusted": not self.decode,
        }
        return {name: value for name, value in facts.items() if value}


@dataclass(frozen=True)
class WriteJob:
    """The part of the work that all shards share; without checks images are stored unseen."""

    source: Source
    url: str
    journal: Journal
    checks: ImageChecks | None


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written: sample indices of a split, in order."""

    split: str
    number: int
    members: NDArray[np.int64]

    @property
    def shard_name(self) -> str:
        return f"shard-{self.number:06d}.tar"

    @property
    def record_name(self) -> str:
        return f"{self.split}-{self.number:06d}"


@dataclass
class WrittenShard:
    """The result of a task.

    Args:
        info: None if no sample was left; there is no file then.
        labels: class indices that occur.
        samples_per_class: number of samples that show each of them, where a sample has several.
        num_files, num_bytes: number and size of the image files read.
        num_samples, num_bytes_stored: number and size of the image files stored.
    """

    split: str
    info: ShardInfo | None = None
    labels: set[int] = field(default_factory=set)
    samples_per_class: Counter[int] = field(default_factory=Counter)
    findings: QualityFindings = field(default_factory=QualityFindings)
    num_files: int = 0
    num_bytes: int = 0
    num_samples: int = 0
    num_bytes_stored: int = 0


SHARD_JSON = TypeAdapter(WrittenShard)


def write_shard(job: WriteJob, task: ShardTask, advance: ProgressFn) -> WrittenShard:
    """Write a shard and its record."""
    url = filesystem.join(job.url, task.split, task.shard_name)
    shard = WrittenShard(task.split)
    try:
        with filesystem.open_for_write(url) as file:
            tar = TarStream(file)
            for index in task.members.tolist():
                _write_sample(job, job.source.splits[task.split][index], tar, shard)
                advance(1)
            tar.finish()
        if shard.num_samples:
            digest = tar.sha256.hexdigest()
            shard.info = ShardInfo(task.shard_name, shard.num_samples, tar.num_bytes, digest)
        else:
            filesystem.remove(url)
        job.journal.add(task.record_name, SHARD_JSON.dump_python(shard, mode="json"))
    except (DataError, StoppedError, MemoryError, AssertionError):
        raise
    except Exception as error:  # every store raises its own kinds, which cannot always be pickled
        raise write_error(url, error) from error
    return shard


def write_error(url: str, error: Exception) -> DataError:
    """Construct the error of a URL that cannot be written."""
    return DataError(
        f"cannot write {url}: {type(error).__name__}: {error}; nothing was published",
        value=url,
        hint=f"Check the URL, the permissions and the free space. {RETRY_HINT}",
    )


def _write_sample(job: WriteJob, sample: Sample, tar: TarStream, shard: WrittenShard) -> None:
    """Add a sample to a tar, or only to the findings."""
    data, extension = sample.read_or_raise(), sample.extension
    shard.num_files += 1
    shard.num_bytes += len(data)
    if job.checks:
        name = job.source.name(sample)
        try:
            checked = _check(name, data, extension, job.checks, shard.findings)
        except BadSample as error:
            rule = "too_large" if isinstance(error, TooLarge) else "corrupt"
            shard.findings.add(rule, f"{name}: {error}")
            return
        if checked is None:
            return
        data, extension = checked
    tar.add(f"{sample.key}.{extension}", data)
    stored = STORED_LABELS[job.source.labels.kind]
    if stored.kind != "none":
        tar.add(f"{sample.key}.{stored.extension}", json.dumps(sample.label).encode("ascii"))
        shard.labels.update(sample.labels)
    if stored.kind == "multi":
        shard.samples_per_class.update(set(sample.labels))
    shard.num_samples += 1
    shard.num_bytes_stored += len(data)


def _check(
    name: str, data: bytes, extension: str, checks: ImageChecks, findings: QualityFindings
) -> tuple[bytes, str] | None:
    """Return the bytes to be stored and their extension, or None to drop the sample."""
    shrink = checks.shrink
    converted = known_format(data, shrink.max_pixels if shrink else MAX_PIXELS)
    if converted is not data:
        data, extension = converted, "jpg"
        findings.add("heif", name)
    try:
        info = inspect_image(data, extension, decode=checks.decode)
    except TooLarge:
        if shrink is None:
            raise
        small = shrink.apply_huge(data)
        findings.add("shrunk", name)
        return small, "jpg"
    extension, rules = info.extension, info.rules
    if info.damage:
        rule = "damaged_left_out" if checks.drop_damaged else "damaged"
        findings.add(rule, f"{name}: {info.damage}")
        if checks.drop_damaged:
            return None
    if checks.bit_depth and (wide := widened(data, checks.bit_depth)):
        data, extension = wide, "png"
        rules = ("widened", *(rule for rule in rules if rule != "few_levels"))
    if shrink and shrink.size(info.width, info.height):
        data, extension = shrink.apply(data), "jpg"
        findings.add("shrunk", name)
    for rule in rules:
        findings.add(rule, name)
    return data, extension
