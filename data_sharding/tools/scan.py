"""What a shard holds, found by reading it once: size, digest, samples and their labels.

Nothing is believed beforehand, so it works on shards that others have made.
"""

import hashlib
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_sharding.errors import BadLabelError, BadSample, DataError, ShardError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.io.tally import Tally
from data_sharding.tools.local_copy import download, local_copy, reason_of

_SHOWN = 5  # of a list of what is wrong
_NONE, _NO_SIZES = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)


class Target(NamedTuple):
    """A shard to be read, and where its copy is kept if it is remote; None keeps none."""

    url: str
    keep_at: Path | None = None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Scan:
    """What a shard holds.

    values: the different labels in it, numbers or names.
    codes: the labels of all samples one after the other, as positions in `values`.
    num_labels: how many labels each sample has; shape (samples,).
    image_bytes: the size of the image file of each sample; shape (samples,).
    wrong: what cannot be used, a line each.
    passed_over, remarks: as the reader counts them; names begin with that of the shard.
    """

    target: Target
    num_bytes: int
    sha256: str
    values: tuple[int | str, ...]
    codes: NDArray[np.int32]
    num_labels: NDArray[np.int32]
    image_bytes: NDArray[np.int64]
    wrong: tuple[str, ...]
    passed_over: Tally = field(default_factory=Tally)
    remarks: Tally = field(default_factory=Tally)

    @property
    def num_samples(self) -> int:
        return len(self.num_labels)

    @property
    def info(self) -> ShardInfo:
        return ShardInfo(self.target.name, self.num_samples, self.num_bytes, self.sha256)

    @property
    def path(self) -> Path:
        """Where the shard lies on this machine; a remote one that was kept."""
        return self.target.keep_at or Path(self.target.url)


def scan_shards(
    targets: Sequence[Target],
    rule: LabelRule,
    *,
    num_workers: int,
    scratch: str | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Scan]:
    """Read shards in parallel.

    Args:
        scratch: the directory for copies of remote shards.

    Raises:
        DataError: something in them cannot be used; the message lists it with shard and key.
    """
    job = _Job(rule, scratch)
    scans = parallel_map(_scan, job, targets, num_workers=num_workers, on_progress=on_progress)
    wrong = [line for scan in scans for line in scan.wrong]
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise DataError(
            f"the shards cannot be used (problems: {len(wrong):,}), so nothing was written:\n"
            + "\n".join(f"  {line}" for line in wrong[:_SHOWN])
            + more
            + f"\nThe labels were read as {rule}; choose others with --label, or mend the shards."
        )
    return scans


def sha256_of(path: Path) -> str:
    """Return the digest of a local file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Job(NamedTuple):
    rule: LabelRule
    scratch: str | None


def _scan(job: _Job, target: Target, advance: ProgressFn) -> Scan:
    try:
        with _path_of(target, job.scratch) as path:
            num_bytes, sha256 = path.stat().st_size, sha256_of(path)
            try:
                with ShardReader(path, labels=job.rule) as reader:
                    return _scan_samples(target, reader, num_bytes, sha256, job.rule, advance)
            except ShardError as error:
                wrong = f"{target.url}: {reason_of(error)}{_members_of(path)}"
                return Scan(target, num_bytes, sha256, (), _NONE, _NONE, _NO_SIZES, (wrong,))
    except DataError:
        raise
    except Exception as error:  # every store raises its own kinds
        raise DataError(
            f"cannot read {target.url}: {type(error).__name__}: {error}. Nothing was written: "
            "check the URL, the credentials, the network and the space for copies."
        ) from error


def _scan_samples(
    target: Target,
    reader: ShardReader,
    num_bytes: int,
    sha256: str,
    rule: LabelRule,
    advance: ProgressFn,
) -> Scan:
    known: dict[int | str, int] = {}
    codes, num_labels, image_bytes, wrong = array("i"), array("i"), array("q"), []
    for i in range(len(reader)):
        try:
            num_image_bytes = len(reader.image(i))  # touches no byte of it
            values = labels_of(reader, i, rule)
        except (BadSample, BadLabelError) as error:
            wrong.append(f"{target.url}: {reader.key(i)}: {error}")
            values, num_image_bytes = [], 0
        codes.extend(known.setdefault(value, len(known)) for value in values)
        num_labels.append(len(values))
        image_bytes.append(num_image_bytes)
        advance(1)
    return Scan(
        target,
        num_bytes,
        sha256,
        tuple(known),
        np.array(codes, dtype=np.int32),
        np.array(num_labels, dtype=np.int32),
        np.array(image_bytes, dtype=np.int64),
        tuple(wrong),
        reader.passed_over.within(target.name),
        reader.remarks.within(target.name),
    )


def labels_of(reader: ShardReader, i: int, rule: LabelRule) -> list[int | str]:
    """Return the labels of a sample as they are written; none where there are no labels.

    Raises:
        BadLabelError, BadSample: they are not of this rule, or there is a negative number.
    """
    values = rule.values(reader.label_bytes(i))
    negative = next((value for value in values if isinstance(value, int) and value < 0), None)
    if negative is not None:
        raise BadLabelError(
            f"has the label {negative}, and classes are numbered from 0; images that have none are "
            "read with --label none"
        )
    return values


@contextmanager
def _path_of(target: Target, scratch: str | None) -> Iterator[Path]:
    if target.keep_at is not None:
        download(target.url, target.keep_at)
        yield target.keep_at
    else:
        with local_copy(target.url, scratch) as path:
            yield path


def _members_of(path: Path) -> str:
    """Return what a tar begins with, for people who must find out what it is."""
    try:
        with tarfile.open(path) as tar:
            names = [member.name for member in islice(tar, _SHOWN)]
    except (tarfile.TarError, OSError):
        return ""
    return f"; it begins with {', '.join(names)}" if names else ""
