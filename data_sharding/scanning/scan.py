"""Read whole shards once: size, digest, and the label and image of every sample.

Nothing is assumed about a shard beforehand, so scans work on shards that others have made. `index`
turns them into manifests, `verify` compares them with existing ones, and `webdataset` and `merge`
take samples from them.
"""

import tarfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadLabelError, BadSample, DataError, ShardError
from data_sharding.format.labels import class_index
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_digest import DigestKind, file_sha256
from data_sharding.format.shard_reader import ShardHeaders, ShardReader
from data_sharding.image.inspect import find_damage
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.io.text import Tally, truncated_list
from data_sharding.scanning.local_copy import local_copy, reason_of
from data_sharding.storage.fetch_shard import shard_sha256

COPY_AGAIN = "Copy the shard again from where the data set came from, or write the set again."
CHECK_ACCESS = "Check the credentials, the network and the space for copies, and try again."
FIX_LABEL = "Fix the label where it came from, and write the set again."
REPLACE_IMAGE = (
    "Training replaces it by the next readable image, and evaluation counts it as wrong. Replace "
    "or remove the image where it came from, and write the set again."
)
DAMAGED = (
    "Training and evaluation use it as it is, though areas may be grey or wrong. Replace it where "
    "it came from, or leave it out with `drop_damaged`, and write the set again; `keep_damaged` "
    "accepts it here."
)


@dataclass(frozen=True)
class ReadOptions:
    """Settings for reading all samples of some shards.

    Args:
        scratch: directory for copies of remote shards; by default the system's for temporary files.
        num_workers: number of processes.
        on_progress: called now and then with the number of samples read.
        what: the bytes that `index` reads: "whole" shards, their "headers" and labels, or, with
            "auto", the cheaper of both for remote shards.
        on_message: called with sentences for the user.
        counted_classes: names of all classes, if `index` may believe counts of others instead of
            reading all labels; those that it reads must be among them.
        any_number: take labels below 0 as they are, to be left out later.
    """

    scratch: str | Path | None = None
    num_workers: int = 1
    on_progress: Callable[[int], None] = lambda done: None
    what: Literal["auto", "whole", "headers"] = "whole"
    on_message: Callable[[str], None] = lambda sentence: None
    counted_classes: Sequence[str] | None = None
    any_number: bool = False


DEFAULT_OPTIONS = ReadOptions()


class ScanProblem(NamedTuple):
    """A problem of a sample, or of its shard if `key` is empty, and the remedy."""

    key: str
    message: str
    fix: str


@dataclass(frozen=True)
class Scan:
    """The contents of a shard.

    Those of `inspect_shards` have no labels and sizes of images, to take little memory.

    values: distinct labels, numbers or names.
    codes: labels of all samples one after the other, as indices into `values`.
    num_labels: number of labels of each sample; shape (samples,).
    image_bytes: size of each sample's image file; shape (samples,), or (0,) in scans of records.
    sha256: digest of all bytes, empty if they were not all read.
    headers_sha256: digest of headers and labels, empty if they were not read.
    sampled_sha256: digest of samples of the bytes, empty if the shard could not be read.
    passed_over, remarks: as the reader counts them; names begin with that of the shard.
    """

    url: str
    path: Path = Path()  # on this machine; of a temporary copy if the shard is remote
    num_bytes: int = 0
    sha256: str = ""
    headers_sha256: str = ""
    sampled_sha256: str = ""
    num_samples: int = 0
    values: tuple[int | str, ...] = ()
    codes: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    num_labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    image_bytes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    problems: tuple[ScanProblem, ...] = ()
    passed_over: Tally = field(default_factory=Tally)
    remarks: Tally = field(default_factory=Tally)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def of_classes(self, rule: SampleRule) -> "Scan":
        """Return the shard as read by a rule that keeps some classes; labels are their numbers.

        Args:
            rule: the rule of this scan, with the labels of each class.
        """
        assert rule.class_labels is not None
        of_label = {label: i for i, labels in enumerate(rule.class_labels) for label in labels}
        classes = np.array([of_label.get(value, -1) for value in self.values], dtype=np.int32)
        codes = classes[self.codes]
        sample = np.repeat(np.arange(self.num_samples), self.num_labels)[codes >= 0]
        num_labels = np.bincount(sample, minlength=self.num_samples).astype(np.int32)
        is_kept = (num_labels > 0) | (self.num_labels == 0)
        return replace(
            self,
            num_samples=int(is_kept.sum()),
            values=tuple(range(len(rule.class_labels))),
            codes=codes[codes >= 0],
            num_labels=num_labels[is_kept],
            image_bytes=self.image_bytes[is_kept[: len(self.image_bytes)]],
        )

    def digest(self, kind: DigestKind) -> str:
        return {
            "whole": self.sha256,
            "headers": self.headers_sha256,
            "sampled": self.sampled_sha256,
        }[kind]

    def info(self, kind: DigestKind = "whole") -> ShardInfo:
        return ShardInfo(self.name, self.num_samples, self.num_bytes, self.digest(kind), kind)


def scan_shards(
    urls: Sequence[str],
    rule: SampleRule,
    options: ReadOptions,
    *,
    keep_copies: bool = False,
) -> list[Scan]:
    """Read shards in parallel, all of whose samples must be usable.

    Args:
        keep_copies: leave copies of remote shards in `options.scratch`.

    Raises:
        DataError: some are not usable; the problem lists them with shard and key.
    """
    job = ScanJob(rule, options.scratch, keep_copies, any_number=options.any_number)
    return require_usable(_scan_all(urls, job, options, require_readable), rule)


def require_usable(scans: list[Scan], rule: SampleRule) -> list[Scan]:
    """Return the scans; raises as `scan_shards` does."""
    problems = [
        ": ".join(filter(None, (scan.url, problem.key, problem.message)))
        for scan in scans
        for problem in scan.problems
    ]
    if problems:
        raise DataError(
            f"the shards cannot be used (problems: {len(problems):,}), so nothing was written:\n  "
            + truncated_list(problems, separator="\n  "),
            value=problems,
            hint=f"The labels were read as {rule}; choose others with `label`, or fix the shards.",
        )
    return scans


def inspect_shards(
    urls: Sequence[str],
    rule: SampleRule,
    classes: Mapping[str, int],
    options: ReadOptions,
    *,
    decode: bool,
) -> list[Scan]:
    """Read shards in parallel, and collect the problems of all of them.

    Args:
        classes: indices of the classes by name, which labels have to be among.
        decode: decode every image.
    """
    return _scan_all(urls, ScanJob(rule, options.scratch, False, classes, decode), options)


class ScanJob(NamedTuple):
    """The arguments of scanning that all shards share.

    Args:
        rule: the members of a sample that are its image and its label.
        scratch: directory for copies of remote shards.
        keep_copies: leave copies there.
        classes: indices of the classes by name, which labels have to be among.
        decode: decode every image.
        any_number: take labels below 0 as they are.
    """

    rule: SampleRule
    scratch: str | Path | None
    keep_copies: bool = False
    classes: Mapping[str, int] | None = None
    decode: bool = False
    any_number: bool = False


def _scan_all(
    urls: Sequence[str],
    job: ScanJob,
    options: ReadOptions,
    on_scan: Callable[[Scan], None] = lambda scan: None,
) -> list[Scan]:
    return parallel_map(
        scan_whole,
        job,
        urls,
        num_workers=options.num_workers,
        on_progress=options.on_progress,
        on_result=on_scan,
    )


def require_readable(scan: Scan) -> None:
    """Raise a DataError if a shard could not be read."""
    if not scan.sampled_sha256:
        raise DataError(
            f"the shard {scan.url} {scan.problems[0].message}, so nothing was written",
            value=scan.url,
            hint=f"Check the URL. {scan.problems[0].fix}",
        )


def scan_whole(job: ScanJob, url: str, advance: ProgressFn) -> Scan:
    """Read all bytes of a shard."""
    return scan_or_problem(url, lambda: _scan_whole(job, url, advance))


def _scan_whole(job: ScanJob, url: str, advance: ProgressFn) -> Scan:
    with local_copy(url, job.scratch, keep=job.keep_copies) as path:
        with path.open("rb") as file:
            digests = file_sha256(file, "whole"), file_sha256(file, "sampled")
        size = path.stat().st_size
        scan = Scan(url, path, size, sha256=digests[0], sampled_sha256=digests[1])
        try:
            with ShardReader(path, rule=job.rule) as reader:
                if job.rule.class_labels is not None:  # the reader drops samples, the digest none
                    with path.open("rb") as file:
                        digest = shard_sha256(file, "headers", job.rule)
                    scan = replace(scan, headers_sha256=digest)
                return scan_samples(job, scan, reader, advance)
        except ShardError as error:
            return unusable_scan(scan, f"{reason_of(error)}{_first_members(path)}")


def unusable_scan(scan: Scan, reason: str) -> Scan:
    """Return the scan of a shard whose members form no samples."""
    message = f"has no usable samples: {reason}"
    return replace(scan, problems=(ScanProblem("", message, COPY_AGAIN),))


def scan_or_problem(url: str, scan: Callable[[], Scan]) -> Scan:
    """Scan a shard; if it cannot be read, return the problem."""
    try:
        return scan()
    except Exception as error:  # stores and decoders raise many kinds
        if isinstance(error.__cause__ or error, FileNotFoundError):
            return Scan(url, problems=(ScanProblem("", "is missing", COPY_AGAIN),))
        message = f"cannot be read: {reason_of(error)}"
        return Scan(url, problems=(ScanProblem("", message, CHECK_ACCESS),))


def scan_samples(job: ScanJob, scan: Scan, reader: ShardHeaders, advance: ProgressFn) -> Scan:
    """Read the labels and image sizes of a shard's samples into its scan.

    Args:
        reader: the samples; a ShardReader if the images are decoded.
        advance: called with 1 after each sample.
    """
    codes_of: dict[int | str, int] = {}
    codes, num_labels, image_bytes = array("i"), array("i"), array("q")
    problems: list[ScanProblem] = []
    digest = reader.digest(scan.sampled_sha256) if job.rule.class_labels is None else None
    decoded = reader if job.decode and isinstance(reader, ShardReader) else None
    for i in range(len(reader)):
        values: list[int | str] = []
        label, num_bytes = reader.label_bytes(i), 0
        if digest is not None:
            digest.update(label)
        try:
            values = _labels(job, label)
        except BadLabelError as error:
            problems.append(ScanProblem(reader.key(i), str(error), FIX_LABEL))
        try:
            num_bytes = reader.num_image_bytes(i)
            if decoded and (damage := find_damage(decoded.image(i))):
                message = f"decodes with damage: {damage}"
                problems.append(ScanProblem(reader.key(i), message, DAMAGED))
        except BadSample as error:
            problems.append(ScanProblem(reader.key(i), str(error), REPLACE_IMAGE))
        codes.extend(codes_of.setdefault(value, len(codes_of)) for value in values)
        num_labels.append(len(values))
        image_bytes.append(num_bytes)
        advance(1)
    scan = replace(
        scan,
        num_samples=len(reader),
        headers_sha256=scan.headers_sha256 if digest is None else digest.hexdigest(),
        problems=tuple(problems),
        passed_over=reader.passed_over.within(scan.name),
        remarks=reader.remarks.within(scan.name),
    )
    if job.classes is not None:
        return scan
    return replace(
        scan,
        values=tuple(codes_of),
        codes=np.array(codes, dtype=np.int32),
        num_labels=np.array(num_labels, dtype=np.int32),
        image_bytes=np.array(image_bytes, dtype=np.int64),
    )


def _labels(job: ScanJob, data: bytes) -> list[int | str]:
    values = job.rule.values(data)
    for value in values:
        if job.classes is not None:
            class_index(value, job.classes)
        elif isinstance(value, int) and value < 0 and not job.any_number:
            raise BadLabelError(
                f"has the label {value}, and classes are numbered from 0; read images without "
                "labels with `label` none, or leave these out with `class_map`"
            )
    return values


def _first_members(path: Path) -> str:
    """Describe the first members of a tar, which often show where it came from."""
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in islice(tar, 5)]
    except (tarfile.TarError, OSError):
        return ""
    return f"; it begins with {', '.join(names)}" if names else ""
