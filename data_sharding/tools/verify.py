"""Check a whole data set: every shard, label and image; collect all problems, not only the first.

Images are decoded whole and strictly, by the decoders of training. Training itself decodes a JPEG
only down to the lower edge of its crop, and tolerates damage that the decoder can recover from.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, ShardInfo, read_manifests
from data_sharding.io import filesystem
from data_sharding.io.text import pluralize
from data_sharding.scanning.scan import (
    COPY_AGAIN,
    DEFAULT_OPTIONS,
    ReadOptions,
    Scan,
    ScanProblem,
    inspect_shards,
)
from data_sharding.tools.duplicate_shards import find_duplicates
from data_sharding.tools.remarks import describe_scans, describe_unused

COUNTED_TWICE = (
    "Its samples count twice, or are used both for training and for validation. `index` the split "
    "again without it, with `tars` and `force`, or write the set again."
)
SAME_CLASSES = "Index or write both splits together, so that they have the same classes."


@dataclass(frozen=True)
class Problem:
    """A problem and its remedy; `shard` or `key` is empty if it is of a whole split or shard."""

    split: str
    shard: str
    key: str
    message: str
    fix: str


@dataclass(frozen=True)
class VerifyReport:
    """All problems of a data set, and remarks on oddities: (split, sentence)."""

    location: Location
    manifests: Mapping[str, Manifest]
    problems: tuple[Problem, ...]
    remarks: tuple[tuple[str, str], ...] = ()


def verify(
    where: str | Location, options: ReadOptions = DEFAULT_OPTIONS, *, decode: bool = True
) -> VerifyReport:
    """Check all shards of a data set against its manifests.

    Args:
        decode: decode every image.
    """
    location = Location.of(where)
    manifests = read_manifests(location)
    problems, remarks = [*_compare_classes(manifests), *_duplicates(manifests)], []
    num_before = 0
    for split, manifest in manifests.items():
        scans = inspect_shards(
            [location.shard_url(split, shard.name) for shard in manifest.shards],
            manifest.rule,
            manifest.class_indices,
            replace(options, on_progress=_offset(options.on_progress, num_before)),
            decode=decode,
        )
        num_before += manifest.num_samples
        problems += [
            Problem(split, shard.name, *problem)
            for shard, scan in zip(manifest.shards, scans, strict=True)
            for problem in _compare_shard(shard, scan)
        ]
        remarks += [(split, remark) for remark in _remarks(location, split, manifest, scans)]
    return VerifyReport(location, manifests, tuple(problems), tuple(remarks))


def _offset(on_progress: Callable[[int], None], num_before: int) -> Callable[[int], None]:
    return lambda done: on_progress(num_before + done)


def _compare_classes(manifests: Mapping[str, Manifest]) -> list[Problem]:
    first, *others = manifests.items()
    return [
        Problem(split, "", "", f"its classes are not those of {first[0]}", SAME_CLASSES)
        for split, manifest in others
        if manifest.classes != first[1].classes
    ]


def _duplicates(manifests: Mapping[str, Manifest]) -> list[Problem]:
    return [
        Problem(split, name, "", f"has the same bytes as {first}", COUNTED_TWICE)
        for split, name, first in find_duplicates(
            {s: ((i.name, i.sha256) for i in m.shards) for s, m in manifests.items()}
        )
    ]


def _compare_shard(expected: ShardInfo, scan: Scan) -> list[ScanProblem]:
    """Return the problems of a scan, and its differences from the manifest before them."""
    problems = [*scan.problems]
    if not scan.sampled_sha256:
        return problems
    if scan.num_samples not in (0, expected.num_samples):
        message = (
            f"holds {pluralize(scan.num_samples, 'sample')}, and the manifest says "
            f"{expected.num_samples:,}"
        )
        problems.insert(0, ScanProblem("", message, COPY_AGAIN))
    if scan.num_bytes != expected.num_bytes:
        how = "is truncated" if scan.num_bytes < expected.num_bytes else "is too long"
        message = f"{how}: {scan.num_bytes:,} of {expected.num_bytes:,} bytes"
    elif scan.digest(expected.digest) != expected.sha256:
        message = "has the right size and other bytes: its digest is not the manifest's"
    else:
        return problems
    # The shard is the cause of the problems of its samples.
    return [ScanProblem("", message, COPY_AGAIN), *(p._replace(fix=COPY_AGAIN) for p in problems)]


def _remarks(
    location: Location, split: str, manifest: Manifest, scans: Sequence[Scan]
) -> Iterator[str]:
    with suppress(OSError):  # the shards were read
        names = [] if location.url is None else filesystem.list_names(location.base(split))
        yield from filter(None, [describe_unused(names, (s.name for s in manifest.shards))])
    yield from describe_scans(scans)
