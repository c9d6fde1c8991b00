"""Write a source as a data set: WebDataset shards and a manifest for each split.

Samples are shuffled before they are cut into shards, so that a shard is a random draw of its split.
Each shard is written by one process straight to its destination. Equal sources and settings give
equal bytes, whatever the number of processes and of interruptions.

A set is published as a whole or not at all: the manifest of train, or of fold 0, is the last file
written, and the mark of an unfinished set is removed after it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.memory import MemoryFileSystem

from data_sharding.errors import DataError
from data_sharding.format.location import LAST_PUBLISHED, publish_order
from data_sharding.format.manifest import (
    Manifest,
    read_manifest,
    url_of,
    write_manifest,
)
from data_sharding.format.shard_table import ShardTable
from data_sharding.image.quality_report import QualityFindings, report
from data_sharding.io import filesystem
from data_sharding.io.process_pool import parallel_map
from data_sharding.io.text import pluralize, truncated_list
from data_sharding.sources.base import Source
from data_sharding.tools.image_profile import with_profile
from data_sharding.tools.remarks import describe_untrained
from data_sharding.writing import journal
from data_sharding.writing.dedupe import DUPLICATES_JSON, Duplicates, find_duplicates
from data_sharding.writing.shard_tasks import WriteSettings, divide_into_shards
from data_sharding.writing.shard_writer import (
    RETRY_HINT,
    SHARD_JSON,
    STORED_LABELS,
    ImageChecks,
    ShardTask,
    WriteJob,
    WrittenShard,
    write_error,
    write_shard,
)

Progress = Callable[[int, int], None]  # called with the number of images processed, and of all

DUPLICATES = "duplicates"  # the name of their record
_MAX_NAMED = 10
_SHRINK_HINT = (
    "`max_side` or `short_side` makes JPEGs of over 89 megapixels smaller, and with "
    "`max_megapixels`, which decodes them whole, all others."
)
_DROPPED = {"corrupt": "corrupt", "too_large": "too large"}  # rules, and words for them


@dataclass(frozen=True)
class Dataset:
    """A written data set: its manifests by split, True if it existed before, its report."""

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
    """Write a source to a URL as WebDataset shards, or keep the same set if it exists.

    A run that was interrupted is continued: finished shards are kept.

    Args:
        seed: seed of the order of the samples in the shards.
        samples_per_shard: maximum; the shards of a split differ by at most one sample.
        shard_bytes: alternative maximum: total size of the source files in a shard (or one file).
        checks: treatment of the images; None stores them unseen.
        num_workers: number of processes; several need a source that can be pickled.
        on_progress: callback while images are written, those of an interrupted run included.
        on_hashing: callback before that, while duplicates are searched.

    Raises:
        DataError: the URL holds something else, is being written by another process or cannot be
            written; an image cannot be read, or too many are corrupt. Nothing is published then.
    """
    settings = WriteSettings(seed, samples_per_shard, shard_bytes, checks)
    facts = settings.facts(source)
    try:
        if is_published(url):
            return _reuse(source, url, facts)
        if isinstance(filesystem.store_of(url)[0], MemoryFileSystem):
            num_workers = 1  # no other process sees that memory
        with journal.locked(url) as lock:
            if is_published(url):  # by the previous holder of the lock
                return _reuse(source, url, facts, is_locked=True)
            records = journal.open_journal(url, journal_facts(source, facts), lock)
            job = WriteJob(source, url, records, checks)
            dataset = DatasetWriter(job, facts, num_workers, on_progress, on_hashing).run()
            journal.remove(url)
            return dataset
    except (OSError, ImportError, ValueError) as error:  # the last two: fsspec, of the protocol
        raise write_error(url, error) from error


def is_published(url: str) -> bool:
    """Check whether a URL holds a complete data set."""
    return _last_published(url) is not None


def _last_published(url: str) -> str | None:
    """Return the split of a complete data set that was published last; None without one."""
    try:
        return next((s for s in LAST_PUBLISHED if filesystem.exists(url_of(url, s))), None)
    except Exception as error:  # every store raises its own kinds; ImportError without its package
        raise write_error(url, error) from error


def journal_facts(source: Source, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values that an unfinished set is recognised by."""
    return {**facts, **_digests(source)}


def _digests(source: Source) -> dict[str, str]:
    """Return digests that distinguish sources of equal fingerprints; shards do not hold them."""
    sizes = {split: len(source.splits[split]) for split in publish_order(source.splits)}
    layout = hashlib.sha256(json.dumps([source.classes, sizes]).encode()).hexdigest()
    return {"times_sha256": source.times_sha256, "layout_sha256": layout}


def _reuse(
    source: Source, url: str, facts: Mapping[str, Any], *, is_locked: bool = False
) -> Dataset:
    """Return the published set if it is the requested one, and clear what a killed run left."""
    last = read_manifest(url, _last_published(url) or LAST_PUBLISHED[0])
    old = last.source
    if old != facts:
        names = sorted(name for name in {**old, **facts} if old.get(name) != facts.get(name))
        differing = "; ".join(f"{name}: {old.get(name)} / {facts.get(name)}" for name in names)
        raise _other_dataset(url, f"holds another data set (existing / requested: {differing})")
    report_url = filesystem.join(url, journal.REPORT)
    old_report: dict[str, Any] | None = None
    if filesystem.exists(report_url):
        old_report = json.loads(filesystem.read_bytes(report_url))
    new = _digests(source)
    changed = {name for name in new if old_report and old_report.get(name) != new[name]}
    if last.classes != source.classes or "layout_sha256" in changed:
        raise _other_dataset(
            url, "was written from the same files with other classes or another validation split"
        )
    if "times_sha256" in changed:
        raise _other_dataset(
            url, "was written from files of the same names and sizes that may have changed since"
        )
    if journal.is_in_progress(url):
        with nullcontext() if is_locked else journal.locked(url):
            journal.remove(url)
    manifests = {split: read_manifest(url, split) for split in publish_order(source.splits)}
    return Dataset(manifests, reused=True, report=old_report)


def _other_dataset(url: str, problem: str) -> DataError:
    hint = "Write to another URL, or remove that set first."
    return DataError(f"{url} {problem}; it was left as it is", value=url, hint=hint)


@dataclass(frozen=True)
class WriteState:
    """The shards of a set, or some of them, and the finished ones by the names of their records."""

    duplicates: Duplicates
    tasks: Sequence[ShardTask]
    shards: dict[str, WrittenShard]

    @property
    def pending(self) -> list[ShardTask]:
        """The tasks whose shards are not finished."""
        return [task for task in self.tasks if task.record_name not in self.shards]


@dataclass(frozen=True)
class DatasetWriter:
    """Writes the shards of an unfinished set, or some of them."""

    job: WriteJob
    facts: Mapping[str, Any]
    num_workers: int
    on_progress: Progress = lambda done, total: None
    on_hashing: Progress = lambda done, total: None

    def run(self) -> Dataset:
        """Write the shards that are not finished yet, and publish the set."""
        state = self.read_state()
        self.write_pending(state)
        return self._publish([state.shards[t.record_name] for t in state.tasks], state.duplicates)

    def read_state(self, names: Collection[str] | None = None) -> WriteState:
        """Divide the samples into shards, and read from the journal which of these are finished.

        Args:
            names: names of the records of the shards to consider; None considers all.
        """
        records = self.job.journal.read(names if names is None else {DUPLICATES, *names})
        duplicates = self._duplicates(records)
        tasks = divide_into_shards(self.job.source, self.facts, duplicates)
        if names is not None:
            tasks = [task for task in tasks if task.record_name in names]
        return WriteState(duplicates, tasks, _reusable_shards(self.job.url, tasks, records))

    def write_pending(self, state: WriteState) -> None:
        """Write the unfinished shards, and add them to the state."""
        pending = state.pending
        num_kept = sum(shard.num_files for shard in state.shards.values())
        total = num_kept + sum(len(task.members) for task in pending)
        limit = _BadImageLimit(sum(map(len, self.job.source.splits.values())), self.job.checks)
        for shard in state.shards.values():
            limit.add(shard)
        if num_kept:
            self.on_progress(num_kept, total)
        written = parallel_map(
            write_shard,
            self.job,
            pending,
            num_workers=self.num_workers,
            on_progress=lambda done: self.on_progress(num_kept + done, total),
            on_result=limit.add,
        )
        state.shards.update(zip((task.record_name for task in pending), written, strict=True))

    def _duplicates(self, records: Mapping[str, Mapping[str, Any]]) -> Duplicates:
        if self.job.checks is None or not self.job.checks.dedupe:
            return Duplicates()
        if DUPLICATES in records:
            return DUPLICATES_JSON.validate_python(records[DUPLICATES])
        duplicates = find_duplicates(
            self.job.source, num_workers=self.num_workers, on_progress=self.on_hashing
        )
        self.job.journal.add(DUPLICATES, DUPLICATES_JSON.dump_python(duplicates, mode="json"))
        return duplicates

    def _publish(self, shards: Sequence[WrittenShard], duplicates: Duplicates) -> Dataset:
        source, url = self.job.source, self.job.url
        rule = STORED_LABELS[source.labels.kind]
        manifests = {}
        for split in publish_order(source.splits):
            of_split = [shard for shard in shards if shard.split == split]
            infos = tuple(shard.info for shard in of_split if shard.info is not None)
            if not infos:
                raise DataError(
                    f"no image of {split} is left to be stored, so nothing was published",
                    value=split,
                    hint="Add images that are sound and no duplicates.",
                )
            table = ShardTable.from_infos(infos)
            counts = _samples_per_class(of_split, source) if rule.kind == "multi" else None
            manifests[split] = Manifest(
                source.classes,
                table,
                self.facts,
                rule,
                samples_per_class=counts,
                num_folds=self.facts.get("folds"),
            )
        quality = None
        if self.job.checks:
            quality = _report(source, self.facts, shards, duplicates)
            text = json.dumps(quality, indent=2, ensure_ascii=False)
            filesystem.write_bytes(filesystem.join(url, journal.REPORT), (text + "\n").encode())
        for split, manifest in manifests.items():
            manifests[split] = with_profile(url, split, manifest)
            write_manifest(url, split, manifests[split])
        return Dataset(manifests, reused=False, report=quality)


def _samples_per_class(shards: Sequence[WrittenShard], source: Source) -> tuple[int, ...]:
    total = sum((shard.samples_per_class for shard in shards), Counter[int]())
    return tuple(total[label] for label in range(len(source.classes)))


class _BadImageLimit:
    """Counts dropped images and stops the writing when there are too many."""

    def __init__(self, num_files: int, checks: ImageChecks | None) -> None:
        self._num_files, self._findings = num_files, QualityFindings()
        self._max_fraction = checks.max_bad_fraction if checks else 1.0

    def add(self, shard: WrittenShard) -> None:
        """Count the dropped images of a shard."""
        self._findings.merge(shard.findings)
        counts, names = self._findings.counts, self._findings.names
        num_bad = sum(counts[rule] for rule in _DROPPED)
        if num_bad > self._max_fraction * self._num_files:
            kinds = " or ".join(word for rule, word in _DROPPED.items() if counts[rule])
            bad = [name for rule in _DROPPED for name in names.get(rule, ())]
            hint = f"Repair or remove them, or raise `max_bad_fraction`. {RETRY_HINT}"
            raise DataError(
                f"{num_bad} or more of {self._num_files} images are {kinds}, above the allowed "
                f"fraction of {self._max_fraction:g}: {truncated_list(bad, _MAX_NAMED, '; ')}; "
                "nothing was published",
                value=num_bad,
                hint=f"{_SHRINK_HINT} {hint}" if counts["too_large"] else hint,
            )


def _reusable_shards(
    url: str, tasks: Sequence[ShardTask], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, WrittenShard]:
    """Return the finished shards that still exist, by the names of their records."""
    splits = {task.split for task in tasks} if records else ()
    sizes = {split: journal.file_sizes(url, split) for split in splits}
    shards = {}
    for task in tasks:
        if task.record_name in records:
            shard = SHARD_JSON.validate_python(records[task.record_name])
            info, is_whole = shard.info, shard.num_files == len(task.members)
            if is_whole and (info is None or sizes[task.split].get(info.name) == info.num_bytes):
                shards[task.record_name] = shard
    return shards


def _report(
    source: Source, facts: Mapping[str, Any], shards: Sequence[WrittenShard], duplicates: Duplicates
) -> Mapping[str, Any]:
    findings = QualityFindings()
    findings.merge(source.findings)
    if facts.get("dedupe"):
        del findings.counts["linked_twice"]  # they are among the copies
    for part in (duplicates.findings, *(shard.findings for shard in shards)):
        findings.merge(part)
    numbers = {
        "num_files": sum(map(len, source.splits.values())),
        "num_stored": sum(shard.info.num_samples for shard in shards if shard.info),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_bytes_stored": sum(shard.num_bytes_stored for shard in shards),
    }
    in_train, in_val = (
        {source.classes[label] for s in shards if s.split == split for label in s.labels}
        for split in ("train", "val")
    )
    warnings = [*source.warnings, describe_untrained(in_train, in_val)]
    if num := findings.counts["too_large"]:
        warnings.append(f"{pluralize(num, 'image')} left out as too large. {_SHRINK_HINT}")
    return {
        **report(findings, numbers, source.skipped),
        "warnings": [warning for warning in warnings if warning],
        "notes": [*source.notes],
        **_digests(source),
    }
