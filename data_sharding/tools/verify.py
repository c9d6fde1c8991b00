"""A data set checked whole: every shard, every label, every image. Never stops at the first error.

Images are decoded whole by the decoders of training, and strictly: training decodes a JPEG only as
far down as its crop reaches, and puts up with damage that the decoder can get over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data_sharding.errors import BadLabelError, BadSample, ShardError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import SPLITS, Manifest, ShardInfo, read_manifest, url_of
from data_sharding.format.shard_reader import ShardReader
from data_sharding.image.strict_decode import find_damage
from data_sharding.io import filesystem
from data_sharding.io.process_pool import ProgressFn, parallel_map
from data_sharding.io.tally import Tally
from data_sharding.io.text import pluralize
from data_sharding.tools.duplicate_shards import repeated
from data_sharding.tools.local_copy import local_copy, reason_of
from data_sharding.tools.scan import sha256_of
from data_sharding.tools.scan_warnings import describe, describe_left

COPY_AGAIN = "Copy the shard again from where the data set came from, or make the set again."
REACH = "Check the credentials and the network, and verify again."
REPLACE_IMAGE = (
    "Training puts the next readable image in its place, and evaluation counts it as wrong. "
    "Replace or remove the image where it came from, and make the set again."
)
DAMAGED = (
    "Training and evaluation use it as it is, though parts may be grey or wrong. Replace it where "
    "it came from, or leave it out with --drop-damaged, and make the set again; --keep-damaged "
    "lets it pass here."
)
MEND_LABEL = "Mend the label where it came from, and make the set again."
COUNTED_TWICE = (
    "Its samples count twice, or are learned and judged by. Index the split again without it "
    "(`tahoe shard index URL --split SPLIT --tars 'PATTERN' --force`), or make the set again."
)
SAME_CLASSES = "Index or write both splits together, so that they have the same classes."


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where it is, what it is, and what to do about it.

    `shard` is empty if it is about the split, `key` if it is about the shard.
    """

    split: str
    shard: str
    key: str
    message: str
    fix: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, all that is wrong with it, and what is odd: (split, sentence)."""

    url: str
    manifests: Mapping[str, Manifest]
    problems: tuple[Problem, ...]
    remarks: tuple[tuple[str, str], ...] = ()


def read_manifests(url: str) -> dict[str, Manifest]:
    """Return the manifests of the splits that a data set has; at least one.

    Raises:
        DataError: there is none, or one cannot be used.
    """
    there = [split for split in SPLITS if _may_have(url, split)]
    return {split: read_manifest(url, split) for split in there or SPLITS[:1]}


def _may_have(url: str, split: str) -> bool:
    try:
        return filesystem.exists(url_of(url, split))
    except Exception:  # every store raises its own kinds; to read it tells why
        return True


def verify(
    url: str,
    *,
    decode: bool = True,
    num_workers: int = 1,
    scratch: str | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> VerifyReport:
    """Check all that a data set holds.

    Args:
        decode: decode every image.
        scratch: the directory for copies of remote shards.
        on_progress: called now and then with the number of samples checked.

    Raises:
        DataError: there is no manifest to check against.
    """
    manifests = read_manifests(url)
    rules = {split: manifest.labels for split, manifest in manifests.items()}
    numbers = {split: _numbers(manifest) for split, manifest in manifests.items()}
    items = [_Item(split, shard) for split, m in manifests.items() for shard in m.shards]
    job = _Job(url, rules, numbers, decode, scratch)
    found = parallel_map(_check, job, items, num_workers=num_workers, on_progress=on_progress)
    problems = [
        *_compare_classes(manifests),
        *_repeated(manifests),
        *(p for part in found for p in part.problems),
    ]
    return VerifyReport(url, manifests, tuple(problems), tuple(_remarks(url, manifests, found)))


class _Job(NamedTuple):
    """What all shards have in common; `numbers` are those of the classes, by name, by split."""

    url: str
    rules: Mapping[str, LabelRule]
    numbers: Mapping[str, Mapping[str, int]]
    decode: bool
    scratch: str | None


class _Item(NamedTuple):
    split: str
    shard: ShardInfo

    def problem(self, key: str, what: str, remedy: str) -> Problem:
        return Problem(self.split, self.shard.name, key, what, remedy)


class _Found(NamedTuple):
    """What was found in one shard."""

    split: str
    problems: list[Problem]
    passed_over: Tally
    remarks: Tally


def _remarks(
    url: str, manifests: Mapping[str, Manifest], found: Sequence[_Found]
) -> Iterator[tuple[str, str]]:
    for split, manifest in manifests.items():
        with suppress(Exception):  # every store raises its own kinds; its shards were read
            names = filesystem.list_names(filesystem.join(url, split))
            left = describe_left(names, (shard.name for shard in manifest.shards))
            yield from ((split, sentence) for sentence in [left] if sentence)
        mine = [part for part in found if part.split == split]
        passed_over = Tally.sum_of(part.passed_over for part in mine)
        remarks = Tally.sum_of(part.remarks for part in mine)
        yield from ((split, sentence) for sentence in describe(passed_over, remarks))


def _numbers(manifest: Manifest) -> dict[str, int]:
    return {name: number for number, name in enumerate(manifest.classes)}


def _compare_classes(manifests: Mapping[str, Manifest]) -> list[Problem]:
    first, *others = manifests.items()
    return [
        Problem(split, "", "", f"its classes are not those of {first[0]}", SAME_CLASSES)
        for split, manifest in others
        if manifest.classes != first[1].classes
    ]


def _repeated(manifests: Mapping[str, Manifest]) -> list[Problem]:
    shards = {s: ((i.name, i.sha256) for i in m.shards) for s, m in manifests.items()}
    return [
        Problem(split, name, "", f"has the same bytes as {first}", COUNTED_TWICE)
        for split, name, first in repeated(shards)
    ]


def _check(job: _Job, item: _Item, advance: ProgressFn) -> _Found:
    found = _Found(item.split, [], Tally(), Tally())
    found.problems.extend(_problems(job, item, advance, found))
    return found


def _problems(job: _Job, item: _Item, advance: ProgressFn, found: _Found) -> list[Problem]:
    try:
        with local_copy(filesystem.join(job.url, item.split, item.shard.name), job.scratch) as path:
            of_file = _check_file(item, path)
            of_samples = _check_samples(job, item, path, advance, found)
            if of_file:  # then the shard is to blame for its samples
                of_samples = [replace(problem, fix=COPY_AGAIN) for problem in of_samples]
            return [*of_file, *of_samples]
    except FileNotFoundError:
        return [item.problem("", "is missing", COPY_AGAIN)]
    except Exception as error:  # every store raises its own kinds
        return [item.problem("", f"cannot be read: {type(error).__name__}: {error}", REACH)]


def _check_file(item: _Item, path: Path) -> list[Problem]:
    num_bytes, expected = path.stat().st_size, item.shard.num_bytes
    if num_bytes != expected:
        how = "is truncated" if num_bytes < expected else "is too long"
        return [item.problem("", f"{how}: {num_bytes:,} of {expected:,} bytes", COPY_AGAIN)]
    if sha256_of(path) != item.shard.sha256:
        what = "has the right size and other bytes: its digest is not the manifest's"
        return [item.problem("", what, COPY_AGAIN)]
    return []


def _check_samples(
    job: _Job, item: _Item, path: Path, advance: ProgressFn, found: _Found
) -> list[Problem]:
    try:
        with ShardReader(path, labels=job.rules[item.split]) as reader:
            found.passed_over.merge(reader.passed_over.within(item.shard.name))
            found.remarks.merge(reader.remarks.within(item.shard.name))
            problems = _check_count(item, len(reader))
            for i in range(len(reader)):
                problems += _check_sample(job, item, reader, i)
                advance(1)
            return problems
    except ShardError as error:
        return [item.problem("", f"has no usable samples: {reason_of(error)}", COPY_AGAIN)]


def _check_count(item: _Item, num_samples: int) -> list[Problem]:
    if num_samples == item.shard.num_samples:
        return []
    there = pluralize(num_samples, "sample")
    what = f"holds {there}, and the manifest says {item.shard.num_samples:,}"
    return [item.problem("", what, COPY_AGAIN)]


def _check_sample(job: _Job, item: _Item, reader: ShardReader, i: int) -> list[Problem]:
    found = []
    try:
        job.rules[item.split].parse(reader.label_bytes(i), job.numbers[item.split])
    except (BadLabelError, BadSample) as error:
        found.append((str(error), MEND_LABEL))
    try:
        image = reader.image(i)
        if job.decode and (damage := find_damage(image)):
            found.append((f"decodes with damage: {damage}", DAMAGED))
    except BadSample as error:
        found.append((str(error), REPLACE_IMAGE))
    return [item.problem(reader.key(i), *problem) for problem in found]
