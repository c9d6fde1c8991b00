"""Scan shards for their manifests, and continue where the command was killed.

Shards that were read are recorded, one a line, in a directory of this user among the temporary
files of the node, until their manifests are written. A record counts while its shard has not been
written again.
"""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_sharding.errors import DataError
from data_sharding.format.labels import refuse_unknown_labels
from data_sharding.format.sample_rule import SampleRule
from data_sharding.io import filesystem
from data_sharding.io.node_files import make_private, user_directory
from data_sharding.io.process_pool import ProgressFn, StoppedError, parallel_map
from data_sharding.io.text import Tally, pluralize
from data_sharding.scanning.foreign_counts import ForeignCounts, find_counts
from data_sharding.scanning.header_scan import (
    SHARDS_AT_ONCE,
    Way,
    choose_way,
    scan_counted,
    scan_headers,
)
from data_sharding.scanning.scan import (
    ReadOptions,
    Scan,
    ScanJob,
    require_readable,
    require_usable,
    scan_whole,
)

log = logging.getLogger(__name__)

_REQUESTS_AT_ONCE = 32
_NUM_CHECKED = 4  # of shards whose counts are believed
_EMPTY = Scan("")


class _Job(NamedTuple):
    scan: ScanJob
    way: Way
    counts: ForeignCounts | None


def scan_resumably(urls: Sequence[str], rule: SampleRule, options: ReadOptions) -> list[Scan]:
    """Read shards in parallel as `options.what` says; raises as `scan_shards` does."""
    records = ScanRecords(urls, rule)
    counts = find_counts(urls)
    suffices = options.counted_classes is not None and counts is not None
    way = records.way if options.what == "auto" else options.what
    if way == "counts" and not suffices:  # of another command
        way = None
    scans = records.unchanged(way)
    if scans:
        options.on_message(
            f"{pluralize(len(scans), 'shard')} of {len(urls):,} were read before an interruption"
        )
    missing = [url for url in urls if url not in scans]
    if way is None:
        way = choose_way(missing, rule, options.on_message, counts_suffice=suffices)
    job = _Job(ScanJob(rule, options.scratch, any_number=options.any_number), way, counts)
    if counts is not None:
        options.on_message(_describe_counts(counts, way))
    num_before = sum(scan.num_samples for scan in scans.values())

    def keep(group: Sequence[Record]) -> None:
        for record in group:
            require_readable(record.scan)
            scans[record.scan.url] = record.scan
            if not record.scan.problems:
                records.add(record)

    if way == "counts":
        _check_some(urls, job, options.counted_classes or ())
    parallel_map(
        _scan_group,
        job,
        _groups(missing, way, options.num_workers),
        num_workers=options.num_workers,
        on_progress=lambda done: options.on_progress(num_before + done),
        on_result=keep,
    )
    usable = require_usable([scans[url] for url in urls], rule)
    if counts is not None and (wrong := _wrong_counts(counts, usable)):
        log.warning("%s: the manifest will have the number that was read", wrong[0])
    return usable


def _describe_counts(counts: ForeignCounts, way: Way) -> str:
    if way != "counts":
        return f"{counts.source} has the counts of samples; labels are read, for the classes"
    return (
        f"counts of samples are from {counts.source}, checked with some shards. Labels are not "
        "read: --read headers or whole reads them"
    )


def _check_some(urls: Sequence[str], job: _Job, classes: Sequence[str]) -> None:
    """Read the headers and labels of some shards; refuse wrong counts and unknown labels."""
    some = [urls[i * (len(urls) - 1) // (_NUM_CHECKED - 1)] for i in range(_NUM_CHECKED)]
    records = _scan_group(job._replace(way="headers"), [*dict.fromkeys(some)], lambda num: None)
    for record in records:
        require_readable(record.scan)
    assert job.counts is not None
    scans = require_usable([record.scan for record in records], job.scan.rule)
    if wrong := _wrong_counts(job.counts, scans):
        raise DataError(
            f"{wrong[0]}: one of them is out of date, so nothing was written",
            value=job.counts.source,
            hint="Fetch the shard again, or count the samples with `read` headers.",
        )
    for scan in scans:
        refuse_unknown_labels(scan.url, scan.values, classes)


def _wrong_counts(counts: ForeignCounts, scans: Iterable[Scan]) -> list[str]:
    """Describe the shards that have another number of samples than others have counted."""
    return [
        f"{counts.source} counts {counts.num_samples[scan.url]:,} samples in {scan.url}, which has "
        f"{scan.num_samples:,}"
        for scan in scans
        if scan.num_samples != counts.num_samples[scan.url]
    ]


class Record(NamedTuple):
    """A shard that was read."""

    scan: Scan
    way: Way
    version: str  # of the file; empty if unknown


class ScanRecords:
    """The records of the shards of one command.

    Attributes:
        way: the way in which its shards were read last; None without records.
    """

    def __init__(self, urls: Iterable[str], rule: SampleRule) -> None:
        key = hashlib.sha256("\n".join([repr(rule), *sorted(urls)]).encode()).hexdigest()
        self._path = user_directory("scans") / f"{key}.jsonl"
        self._records = _read(self._path)
        self.way = self._records[-1].way if self._records else None

    def unchanged(self, way: Way | None) -> dict[str, Scan]:
        """Return the scans of shards that were not written since, by URL."""
        records = [record for record in self._records if record.way == way]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            versions = pool.map(_version, [record.scan.url for record in records])
            return {
                record.scan.url: record.scan
                for record, version in zip(records, versions, strict=True)
                if version and version == record.version
            }

    def add(self, record: Record) -> None:
        """Append a record; the line end comes first, since a crash may have cut the last line."""
        with suppress(OSError, DataError):  # no space, or none of this user: nothing is recorded
            for directory in (self._path.parent.parent, self._path.parent):
                make_private(directory)
            with self._path.open("a") as file:
                file.write("\n" + json.dumps([_to_json(record.scan), record.way, record.version]))

    def remove(self) -> None:
        """Remove all records."""
        with suppress(OSError):
            self._path.unlink()


def _groups(urls: Sequence[str], way: Way, num_workers: int) -> list[Sequence[str]]:
    """Return the shards that a process reads at once."""
    most = 1 if way == "whole" else SHARDS_AT_ONCE
    size = max(min(most, -(-len(urls) // num_workers)), 1)
    return [urls[start : start + size] for start in range(0, len(urls), size)]


def _scan_group(job: _Job, urls: Sequence[str], advance: ProgressFn) -> list[Record]:
    lock, stop = threading.Lock(), threading.Event()

    def locked_advance(num: int) -> None:
        if stop.is_set():
            raise StoppedError
        with lock:
            advance(num)

    def read(url: str) -> Record:
        version = _version(url)  # before it is read
        return Record(_scan(job, url, locked_advance), job.way, version)

    with ThreadPoolExecutor(len(urls)) as pool:
        try:
            return [*pool.map(read, urls)]
        finally:
            stop.set()


def _scan(job: _Job, url: str, advance: ProgressFn) -> Scan:
    if job.way == "counts":
        assert job.counts is not None
        return scan_counted(url, job.counts.num_samples[url])
    return (scan_whole if job.way == "whole" else scan_headers)(job.scan, url, advance)


def _version(url: str) -> str:
    with suppress(OSError):  # reading it says why
        return filesystem.version(url)
    return ""


def _to_json(scan: Scan) -> dict[str, Any]:
    needed = (field.name for field in fields(scan) if field.name != "image_bytes")
    values = {name: getattr(scan, name) for name in needed}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Tally):
        return {"counts": dict(value.counts), "firsts": value.firsts}
    return value


def _read(path: Path) -> list[Record]:
    """Read the records in a file, if any; skip a line that is cut short or of another version."""
    records = []
    with suppress(OSError, DataError):
        make_private(path.parent)  # whose files are trusted
        for line in path.read_text().splitlines():
            with suppress(ValueError, TypeError, KeyError, AttributeError):
                values, way, version = json.loads(line)
                records.append(Record(_from_json(values), way, version))
    return records


def _from_json(values: dict[str, Any]) -> Scan:
    if values.keys() != _to_json(_EMPTY).keys():
        raise ValueError("a record of another version of Tahoe")
    return Scan(**{name: _as_in(getattr(_EMPTY, name), value) for name, value in values.items()})


def _as_in(example: Any, value: Any) -> Any:
    if isinstance(example, np.ndarray):
        return np.array(value, dtype=example.dtype)
    if isinstance(example, Tally):
        return Tally(Counter(value["counts"]), value["firsts"])
    return type(example)(value)
