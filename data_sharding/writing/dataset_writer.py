"""Samples become a data set: WebDataset shards and one manifest a split.

Samples are shuffled before they are cut into shards, so that a shard is a fair draw of its split.
Each shard is written by one process straight to where it belongs. Equal sources and settings give
equal bytes, however many processes there are and however often they are killed.

A set is published whole or not at all: `train/manifest.json` is the last file written, and what
marks the set as unfinished is removed then.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray

from data_sharding.errors import DataError
from data_sharding.format.label_checks import describe_untrained
from data_sharding.format.manifest import (
    PUBLISH_ORDER,
    Manifest,
    read_manifest,
    url_of,
    write_manifest,
)
from data_sharding.format.shard_table import ShardTable
from data_sharding.image.quality_report import QualityFindings, report
from data_sharding.io import filesystem
from data_sharding.io.process_pool import parallel_map
from data_sharding.rng import permutation
from data_sharding.sources.base import Source
from data_sharding.writing.dedupe import Duplicates, find_duplicates
from data_sharding.writing.journal import (
    REPORT,
    file_sizes,
    is_in_progress,
    locked,
    open_journal,
    remove,
)
from data_sharding.writing.shard_writer import (
    RETRY_HINT,
    STORED_LABELS,
    ImageChecks,
    ShardTask,
    WriteJob,
    WrittenShard,
    cannot_write,
    write_shard,
)

Progress = Callable[[int, int], None]  # images dealt with, of all

_DUPLICATES = "duplicates"
_RECORDS = 2  # of shards, as they are noted now: those from before lack labels
_MAX_NAMED = 10
_LEFT_OUT = {"corrupt": "corrupt", "too_large": "too large"}  # rules, and words for them


@dataclass(frozen=True)
class Dataset:
    """The manifests of a data set by split, whether it was there already, and its report."""

    manifests: Mapping[str, Manifest]
    reused: bool
    report: Mapping[str, Any] | None = None


def write_dataset(
    source: Source,
    url: str,
    *,
    seed: int,
    samples_per_shard: int | None = None,
    shard_bytes: int | None = None,
    checks: ImageChecks | None = None,
    num_workers: int = 1,
    on_progress: Progress = lambda done, total: None,
    on_hashing: Progress = lambda done, total: None,
) -> Dataset:
    """Write a source to a URL as WebDataset shards; a set that was made like this is kept as it is.

    A run that was stopped is taken up: shards that were finished are kept.

    Args:
        seed: of the order of the samples in the shards.
        samples_per_shard: at most; the shards of a split differ by one sample or none.
        shard_bytes: instead of that: of source files in a shard, at most or one file.
        checks: what is done to the images; None stores them unseen.
        num_workers: processes; the source must be fit to be pickled if there are more than one.
        on_progress: called now and then with the number of images written, those of a run that was
            stopped among them, and of all.
        on_hashing: likewise, before that, if duplicates are looked for.

    Raises:
        DataError: the URL holds something else, or is being written by another process; an image
            cannot be read, or too many are corrupt; the URL cannot be written. Nothing is
            published then.
    """
    facts = _facts(source, seed, samples_per_shard, shard_bytes, checks)
    try:
        if is_published(url):
            return _reuse(source, url, facts)
        if isinstance(filesystem.store_of(url)[0], MemoryFileSystem):
            num_workers = 1  # no other process sees that memory
        with locked(url) as lock:
            if is_published(url):  # by whoever had the lock
                return _reuse(source, url, facts, is_locked=True)
            known_by = {**facts, **_noted(source), "records": _RECORDS}
            job = WriteJob(source, url, open_journal(url, known_by, lock), checks)
            written = _DatasetWriter(job, facts, num_workers, on_progress, on_hashing).run()
            remove(url)
            return written
    except (OSError, ImportError, ValueError) as error:  # the last two: fsspec, of the protocol
        raise cannot_write(url, error) from error


def is_published(url: str) -> bool:
    """Return whether a data set lies at a URL.

    Raises:
        DataError: nobody can tell.
    """
    try:
        return filesystem.exists(url_of(url, "train"))
    except Exception as error:  # every store raises its own kinds; ImportError without its package
        raise cannot_write(url, error) from error


def _facts(
    source: Source,
    seed: int,
    samples_per_shard: int | None,
    shard_bytes: int | None,
    checks: ImageChecks | None,
) -> dict[str, Any]:
    """Return what tells the set from any other, in JSON values."""
    sizes = {"samples_per_shard": samples_per_shard, "shard_bytes": shard_bytes}
    size = {name: value for name, value in sizes.items() if value is not None}
    if len(size) != 1 or min(size.values()) < 1:
        raise DataError(
            f"{samples_per_shard} samples per shard, {shard_bytes} bytes per shard: no shard could "
            "hold any, so nothing was written. Give one of them, at least 1; 1000 to 10000 samples "
            "suit photographs."
        )
    if shard_bytes is not None and not source.num_bytes:
        raise DataError(
            f"shards of {shard_bytes} bytes need the sizes of all files, which this source does "
            "not know: nothing was written. Give the number of samples per shard."
        )
    return {**source.fingerprint, "seed": seed, **size, **(checks.facts if checks else {})}


def _noted(source: Source) -> dict[str, str]:
    """Return digests that tell a source from one of equal facts; the bytes of a set lack them."""
    sizes = {split: len(source.splits[split]) for split in PUBLISH_ORDER}
    layout = hashlib.sha256(json.dumps([source.classes, sizes]).encode()).hexdigest()
    return {"times_sha256": source.times_sha256, "layout_sha256": layout}


def _reuse(
    source: Source, url: str, facts: Mapping[str, Any], *, is_locked: bool = False
) -> Dataset:
    """Return the set at a URL if it was made like this; a split is only there when it is whole."""
    manifests = {split: read_manifest(url, split) for split in PUBLISH_ORDER}
    there = manifests["train"].source
    if there == facts:
        found = _read_report(url)
        _check_noted(source, url, manifests["train"], found or {})
        _clear_leftovers(url, is_locked)
        return Dataset(manifests, reused=True, report=found)
    differing = sorted(name for name in {**there, **facts} if there.get(name) != facts.get(name))
    comparison = "; ".join(f"{name}: {there.get(name)} / {facts.get(name)}" for name in differing)
    raise DataError(
        f"{url} holds another data set (there / asked for: {comparison}). It was left as it is. "
        "Write to another URL, or remove that set first."
    )


def _check_noted(source: Source, url: str, there: Manifest, report: Mapping[str, Any]) -> None:
    """Refuse other classes or splits of the same files, and files that may have changed.

    Reports from before a digest was noted are believed.
    """
    noted = _noted(source)
    differs = {name for name, digest in noted.items() if report.get(name, digest) != digest}
    if there.classes != source.classes or "layout_sha256" in differs:
        raise DataError(
            f"{url} was written from the same files with other classes, or with other ones of them "
            "for validation, so its labels or splits are not those asked for. The set was left as "
            "it is. Write to another URL, or remove that set first."
        )
    if "times_sha256" in differs:
        raise DataError(
            f"{url} was written from files of the same names and sizes whose time stamps were "
            "others, so some may have changed since, or all are copies. The set was left as it is. "
            "Write to another URL, or remove that set first."
        )


def _clear_leftovers(url: str, is_locked: bool) -> None:
    """Remove what a run has left that was killed after it had published."""
    if not is_in_progress(url):
        return
    if is_locked:
        remove(url)
        return
    with locked(url):
        remove(url)


def _read_report(url: str) -> Mapping[str, Any] | None:
    where = filesystem.join(url, REPORT)
    if not filesystem.exists(where):
        return None
    found: Mapping[str, Any] = json.loads(filesystem.read_bytes(where))
    return found


@dataclass(frozen=True)
class _DatasetWriter:
    """The writing of a set whose place is ours."""

    job: WriteJob
    facts: Mapping[str, Any]
    num_workers: int
    on_progress: Progress
    on_hashing: Progress

    def run(self) -> Dataset:
        """Write what is not finished yet, and publish."""
        records = self.job.journal.read()
        duplicates = self._duplicates(records)
        tasks = self._tasks(duplicates)
        finished = _reusable_shards(self.job.url, tasks, records)
        pending = [task for task in tasks if task.record_name not in finished]
        judge = _CorruptImageLimit(sum(map(len, self.job.source.splits.values())), self.job.checks)
        for shard in finished.values():
            judge(shard)
        found = self._write(pending, sum(shard.num_files for shard in finished.values()), judge)
        finished.update(
            (task.record_name, shard) for task, shard in zip(pending, found, strict=True)
        )
        return self._publish([finished[task.record_name] for task in tasks], duplicates)

    def _duplicates(self, records: Mapping[str, Mapping[str, Any]]) -> Duplicates:
        if self.job.checks is None or not self.job.checks.dedupe:
            return Duplicates((), QualityFindings())
        if _DUPLICATES in records:
            return Duplicates.of_json(records[_DUPLICATES])
        found = find_duplicates(
            self.job.source, num_workers=self.num_workers, on_progress=self.on_hashing
        )
        self.job.journal.add(_DUPLICATES, found.to_json())
        return found

    def _tasks(self, duplicates: Duplicates) -> list[ShardTask]:
        tasks = []
        for split in PUBLISH_ORDER:
            numbers = np.arange(len(self.job.source.splits[split]))
            if split == "train":
                numbers = np.delete(numbers, duplicates.left_out)
            order = numbers[permutation(self.facts["seed"], f"shards/{split}", len(numbers))]
            shards = self._cut(order, split)
            tasks += [ShardTask(split, number, members) for number, members in enumerate(shards)]
        return tasks

    def _cut(self, order: NDArray[np.int64], split: str) -> Sequence[NDArray[np.int64]]:
        if not len(order):
            return []
        if "shard_bytes" in self.facts:
            num_bytes = self.job.source.num_bytes[split][order]
            return np.split(order, _starts(num_bytes, self.facts["shard_bytes"])[1:])
        return np.array_split(order, -(-len(order) // self.facts["samples_per_shard"]))

    def _write(
        self, tasks: Sequence[ShardTask], num_kept: int, judge: "_CorruptImageLimit"
    ) -> list[WrittenShard]:
        total = num_kept + sum(len(task.members) for task in tasks)
        if num_kept:
            self.on_progress(num_kept, total)
        return parallel_map(
            write_shard,
            self.job,
            tasks,
            num_workers=self.num_workers,
            on_progress=lambda done: self.on_progress(num_kept + done, total),
            on_result=judge,
        )

    def _publish(self, shards: Sequence[WrittenShard], duplicates: Duplicates) -> Dataset:
        source, url = self.job.source, self.job.url
        rule = STORED_LABELS[source.labels.kind]
        manifests = {}
        for split in PUBLISH_ORDER:
            infos = tuple(s.info for s in shards if s.split == split and s.info is not None)
            if not infos:
                raise DataError(
                    f"no image of {split} is left that could be stored, so nothing was published. "
                    "Add images that are sound and no duplicates."
                )
            manifests[split] = Manifest(
                source.classes, ShardTable.from_infos(infos), self.facts, rule
            )
        found = _report(source, self.facts, shards, duplicates) if self.job.checks else None
        if found is not None:
            text = json.dumps(found, indent=2, ensure_ascii=False)
            filesystem.write_bytes(filesystem.join(url, REPORT), (text + "\n").encode())
        for split in PUBLISH_ORDER:
            write_manifest(url, split, manifests[split])
        return Dataset(manifests, reused=False, report=found)


class _CorruptImageLimit:
    """Counts images that are left out, and stops the writing when there are too many."""

    def __init__(self, num_files: int, checks: ImageChecks | None) -> None:
        self._num_files, self._found = num_files, QualityFindings()
        self._max_bad_share = checks.max_bad_share if checks else 1.0

    def __call__(self, shard: WrittenShard) -> None:
        self._found.merge(shard.findings)
        num_bad = sum(self._found.counts[rule] for rule in _LEFT_OUT)
        if num_bad > self._max_bad_share * self._num_files:
            named = [name for rule in _LEFT_OUT for name in self._found.names.get(rule, ())]
            kinds = " or ".join(_LEFT_OUT[rule] for rule in _LEFT_OUT if self._found.counts[rule])
            more = f" and {num_bad - _MAX_NAMED} more" if num_bad > _MAX_NAMED else ""
            raise DataError(
                f"{num_bad} of {self._num_files} images or more are {kinds}, and --max-bad-share "
                f"allows {self._max_bad_share:g} of them: {'; '.join(named[:_MAX_NAMED])}{more}. "
                f"{RETRY_HINT} Mend or remove them, or allow for more (--max-bad-share)."
            )


def _reusable_shards(
    url: str, tasks: Sequence[ShardTask], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, WrittenShard]:
    """Return the shards that are finished and still there, by the names of their records."""
    there = {split: file_sizes(url, split) for split in PUBLISH_ORDER} if records else {}
    kept = {}
    for task in tasks:
        if task.record_name in records:
            shard = WrittenShard.of_json(records[task.record_name])
            if shard.info is None or there[task.split].get(shard.info.name) == shard.info.num_bytes:
                kept[task.record_name] = shard
    return kept


def _starts(num_bytes: NDArray[np.int64], shard_bytes: int) -> list[int]:
    """Return where shards begin that hold as much as they may, and at least one file."""
    ends, starts, before = np.cumsum(num_bytes), [], 0
    start = 0
    while start < len(ends):
        starts.append(start)
        stop = int(np.searchsorted(ends, before + shard_bytes, side="right"))
        start = max(stop, start + 1)
        before = int(ends[start - 1])
    return starts


def _report(
    source: Source, facts: Mapping[str, Any], shards: Sequence[WrittenShard], duplicates: Duplicates
) -> Mapping[str, Any]:
    findings = QualityFindings()
    findings.merge(source.findings)
    if facts.get("dedupe"):
        del findings.counts["linked_twice"]  # they are among the copies
    findings.merge(duplicates.findings)
    for shard in shards:
        findings.merge(shard.findings)
    numbers = {
        "num_files": sum(map(len, source.splits.values())),
        "num_stored": sum(shard.info.num_samples for shard in shards if shard.info),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_bytes_stored": sum(shard.num_bytes_stored for shard in shards),
    }
    labels = {split: _labels(source, shards, split) for split in PUBLISH_ORDER}
    untrained = describe_untrained(labels["train"], labels["val"])
    more = {"warnings": [*filter(None, [untrained])], "notes": [*source.notes], **_noted(source)}
    return {**report(findings, numbers, source.skipped), **more}


def _labels(source: Source, shards: Sequence[WrittenShard], split: str) -> set[str]:
    """Return the classes that a split has images of."""
    return {source.classes[label] for s in shards if s.split == split for label in s.labels}
