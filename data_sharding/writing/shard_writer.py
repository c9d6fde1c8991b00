"""One shard: some samples of a source, looked at and written, and a record of what came of it.

What a shard holds depends on the source, the settings and its members alone, so it can be written
by any process, and again after that was killed. One sample is in memory at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadSample, DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_reader import TooLarge
from data_sharding.format.tar_writer import TarStream
from data_sharding.image.inspect import inspect_image
from data_sharding.image.quality_report import QualityFindings
from data_sharding.image.resize import ResizeSettings, widened
from data_sharding.io import filesystem
from data_sharding.io.process_pool import ProgressFn, StoppedError
from data_sharding.sources.base import Sample, Source
from data_sharding.writing.journal import Journal

RETRY_HINT = "Nothing was published; the same command goes on where it stopped."

# How labels are stored, whatever they were read from.
STORED_LABELS = {
    "single": LabelRule(),
    "multi": LabelRule(kind="multi", extension="json"),
    "none": LabelRule(kind="none"),
}


@dataclass(frozen=True)
class ImageChecks:
    """What is done to the images on their way; whatever is found goes into `report.json`.

    Args:
        max_bad_share: of the files that may be corrupt or too large; these are left out.
        shrink: how images are made smaller; None stores all as they are.
        dedupe: leave out of train what lies there before or in val.
        drop_damaged: leave out what decodes with damage; else it is kept. It is named either way.
        decode: decode every image whole; else its header and its end are looked at.
        bit_depth: bits that greys of 16 use; None takes them to use all.
    """

    max_bad_share: float = 0.01
    shrink: ResizeSettings | None = None
    dedupe: bool = False
    drop_damaged: bool = False
    decode: bool = True
    bit_depth: int | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What tells the result from that of other checks, in JSON values."""
        shrink = {"shrink": self.shrink.facts} if self.shrink else {}
        switches = {"dedupe": self.dedupe, "drop_damaged": self.drop_damaged}
        switches["trusted"] = not self.decode
        depth = {"bit_depth": self.bit_depth} if self.bit_depth else {}
        on = {name: True for name, is_on in switches.items() if is_on}
        return {"inspected": True, **shrink, **depth, **on}


@dataclass(frozen=True)
class WriteJob:
    """What all shards of a data set have in common; without checks images are stored unseen."""

    source: Source
    url: str
    journal: Journal
    checks: ImageChecks | None


@dataclass(frozen=True)
class ShardTask:
    """A shard to be written: the samples of a split, by number, in order."""

    split: str
    number: int
    members: NDArray[np.int64]

    @property
    def shard_name(self) -> str:
        return f"shard-{self.number:06d}.tar"

    @property
    def record_name(self) -> str:
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is written; `info` is None if no sample was left, and there is no file then.

    `labels` are those that occur; `num_files` and `num_bytes` are of the image files read,
    `num_bytes_stored` of those stored.
    """

    split: str
    info: ShardInfo | None
    labels: tuple[int, ...]
    findings: QualityFindings
    num_files: int
    num_bytes: int
    num_bytes_stored: int

    def to_json(self) -> dict[str, Any]:
        info = asdict(self.info) if self.info else None
        return {**vars(self), "info": info, "findings": self.findings.to_json()}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "WrittenShard":
        info = ShardInfo(**values["info"]) if values["info"] else None
        findings, labels = QualityFindings.of_json(values["findings"]), tuple(values["labels"])
        return cls(**{**values, "info": info, "labels": labels, "findings": findings})


def write_shard(job: WriteJob, task: ShardTask, advance: ProgressFn) -> WrittenShard:
    """Write a shard and its record.

    Raises:
        DataError: an image cannot be read, or the shard cannot be written.
    """
    url = filesystem.join(job.url, task.split, task.shard_name)
    try:
        with filesystem.open_for_write(url) as file:
            shard = _Shard(job, TarStream(file))
            for number in task.members.tolist():
                shard.add(job.source.splits[task.split][number])
                advance(1)
            shard.tar.finish()
        finished = shard.finished(task)
        if finished.info is None:
            filesystem.remove(url)
        job.journal.add(task.record_name, finished.to_json())
    except (DataError, StoppedError, MemoryError, AssertionError):
        raise
    except Exception as error:  # every store raises its own kinds, which cannot always be pickled
        raise cannot_write(url, error) from error
    return finished


def cannot_write(url: str, error: Exception) -> DataError:
    """Return the error that tells that something could not be written."""
    return DataError(
        f"cannot write {url}: {type(error).__name__}: {error}. {RETRY_HINT} Check the URL, the "
        "permissions and the free space first."
    )


class _Shard:
    """A shard that is being written, and what was found on the way."""

    def __init__(self, job: WriteJob, tar: TarStream) -> None:
        self._job, self.tar = job, tar
        self._rule = STORED_LABELS[job.source.labels.kind]
        self._findings, self._labels = QualityFindings(), set[int]()
        self._num_files = self._num_samples = self._num_bytes = self._num_bytes_stored = 0

    def add(self, sample: Sample) -> None:
        data, extension = sample.read_or_raise(), sample.extension
        self._num_files += 1
        self._num_bytes += len(data)
        if self._job.checks:
            try:
                inspected = self._inspected(sample, data, self._job.checks)
            except BadSample as error:
                rule = "too_large" if isinstance(error, TooLarge) else "corrupt"
                self._findings.add(rule, f"{self._job.source.name(sample)}: {error}")
                return
            if inspected is None:
                return
            data, extension = inspected
        self.tar.add(f"{sample.key}.{extension}", data)
        if self._rule.kind != "none":
            label = json.dumps(sample.label).encode("ascii")
            self.tar.add(f"{sample.key}.{self._rule.extension}", label)
            self._labels.update(sample.labels)
        self._num_samples += 1
        self._num_bytes_stored += len(data)

    def finished(self, task: ShardTask) -> WrittenShard:
        info = None
        if self._num_samples:
            digest = self.tar.sha256.hexdigest()
            info = ShardInfo(task.shard_name, self._num_samples, self.tar.num_bytes, digest)
        return WrittenShard(
            task.split,
            info,
            tuple(sorted(self._labels)),
            self._findings,
            self._num_files,
            self._num_bytes,
            self._num_bytes_stored,
        )

    def _inspected(
        self, sample: Sample, data: bytes, checks: ImageChecks
    ) -> tuple[bytes, str] | None:
        """Return the bytes to be stored and the extension that suits them; None to leave it out."""
        name, shrink = self._job.source.name(sample), checks.shrink
        try:
            look = inspect_image(data, sample.extension, decode=checks.decode)
        except TooLarge:
            scaled = shrink.apply_scaled(data) if shrink else None
            if scaled is None:
                raise
            self._findings.add("shrunk", name)
            return scaled, "jpg"
        extension = look.extension
        if look.damage:
            rule = "damaged_left_out" if checks.drop_damaged else "damaged"
            self._findings.add(rule, f"{name}: {look.damage}")
            if checks.drop_damaged:
                return None
        rules = look.rules
        if checks.bit_depth and (wide := widened(data, checks.bit_depth)):
            data, extension = wide, "png"
            rules = ("widened", *(rule for rule in rules if rule != "few_levels"))
        if shrink and shrink.size(look.width, look.height):
            data, extension = shrink.apply(data), "jpg"
            self._findings.add("shrunk", name)
        for rule in rules:
            self._findings.add(rule, name)
        return data, extension
