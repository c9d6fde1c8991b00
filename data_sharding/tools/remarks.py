"""Describe oddities of shards and labels that were read, and log them as warnings."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.tar_samples import (
    DIRECTORY,
    METADATA,
    MORE_ARCHIVES,
    MORE_IMAGES,
    REPEATED_KEY,
    SYMLINK,
)
from data_sharding.io.text import Tally, pluralize, truncated_list
from data_sharding.scanning.scan import Scan

log = logging.getLogger(__name__)

_LIKE_A_SHARD = re.compile(
    r"[^.].*\.(?:tar(?:\.(?:gz|bz2|xz|zst|lz4|lzma|z))?|t[gbx]z2?|tzst)", re.IGNORECASE
)
_MIN_CHANGES = 20  # expected in shuffled samples; with fewer, sorted ones could be chance
_MAX_FRACTION = 0.25  # of these changes that sorted samples have
# Directories hold no data, and img2dataset and timm write texts about each image.
_EXPECTED = (DIRECTORY, METADATA, ".json", ".txt")
_HINTS = {
    SYMLINK: "a symbolic link holds no bytes: pack the files again with `tar --dereference`",
    MORE_IMAGES: "the key of a sample ends at the first dot of its file names: if these are "
    "samples of their own, replace the other dots in their names by '_'",
    MORE_ARCHIVES: "some files are several tars one after the other, and all are read: plain "
    "`tar` and webdataset stop at the end of the first",
    REPEATED_KEY: "some keys are repeated in their shard, perhaps because files were added twice: "
    "`dedupe` drops training images with the same bytes",
}


def describe_scans(scans: Sequence[Scan]) -> list[str]:
    """Describe what was passed over in shards and what is odd in them, in sentences; maybe none."""
    odd = Tally.sum_of([*(s.passed_over for s in scans), *(s.remarks for s in scans)])
    for kind in _EXPECTED:
        odd.counts.pop(kind, None)
    hints = [hint for kind, hint in _HINTS.items() if kind in odd.counts]
    return [f"passed over or odd: {odd}", *hints] if odd.counts else []


def describe_unused(names: Sequence[str], used: Iterable[str]) -> str:
    """Describe the files of a directory that look like shards and are not used; may be empty."""
    unused = sorted({name for name in names if _LIKE_A_SHARD.fullmatch(name)} - {*used})
    if not unused:
        return ""
    return (
        f"files that look like shards and are not used: {len(unused):,} (first {unused[0]}). A "
        "shard is a plain .tar: if they belong to the set, unpack compressed ones, and index again"
    )


def describe_choice(before: Sequence[Scan], after: Sequence[Scan], rule: SampleRule) -> str:
    """Describe the samples, by label, that are of no chosen class; empty if there are none."""
    kept = {label for labels in rule.class_labels or () for label in labels}
    others = Counter[int | str]()
    for scan in before:
        counts = np.bincount(scan.codes, minlength=len(scan.values)).tolist()
        others.update(dict(zip(scan.values, counts, strict=True)))
    others = Counter({label: num for label, num in others.items() if label not in kept})
    num_dropped = sum(s.num_samples for s in before) - sum(s.num_samples for s in after)
    if not others:
        return ""
    by_label = [f"{label}: {num:,}" for label, num in others.most_common()]
    num_shards = sum(not scan.num_samples for scan in after)
    shards = f" Left out: {pluralize(num_shards, 'shard')} without any other." * bool(num_shards)
    return (
        f"passed over: {pluralize(num_dropped, 'sample')} of {pluralize(len(others), 'label')} "
        f"outside the class map ({truncated_list(by_label)}).{shards}"
    )


def describe_empty(scans: Mapping[str, Sequence[Scan]], classes: Sequence[str]) -> str:
    """Describe the classes that no label of any split means; empty if there are none.

    Args:
        scans: shards whose labels are numbers of classes.
    """
    all_scans = [scan for split_scans in scans.values() for scan in split_scans]
    used = {scan.values[code] for scan in all_scans for code in np.unique(scan.codes).tolist()}
    names = [name for i, name in enumerate(classes) if i not in used]
    if not names:
        return ""
    return (
        f"{pluralize(len(names), 'class')} of the class map without samples: "
        f"{truncated_list(names)}. New labels are numbered from 0 on, without gaps"
    )


def describe_gaps(values: Collection[int | str]) -> str:
    """Describe gaps in labels that are numbers of classes; empty if there are none."""
    numbers = sorted(value for value in values if isinstance(value, int))
    if not numbers or len(numbers) != len(values) or numbers == [*range(len(numbers))]:
        return ""
    num_classes = numbers[-1] + 1
    is_from_1 = numbers == [*range(1, num_classes)]
    reason = "they seem to be counted from 1" if is_from_1 else "some numbers do not occur"
    return (
        f"{len(numbers):,} numbers from {numbers[0]:,} to {numbers[-1]:,}: {reason}. "
        f"Label n means class n, counted from 0, so there are {num_classes:,} classes, "
        f"{num_classes - len(numbers):,} of them without samples. `webdataset` with `relabel` "
        "numbers the labels that occur from 0 on, and `class_map` does so without a copy."
    )


def describe_runs(labels: Sequence[NDArray[Any]]) -> str:
    """Describe samples that are sorted by label; empty if labels change often enough.

    Args:
        labels: label of each sample, for each shard.
    """
    flat = np.concatenate(labels) if len(labels) else np.zeros(0, dtype=np.int64)
    num_pairs = sum(max(len(shard) - 1, 0) for shard in labels)
    num_equal = sum(int((shard[1:] == shard[:-1]).sum()) for shard in labels)
    _, counts = np.unique(flat, return_counts=True)
    equal_by_chance = float(np.square(counts / max(len(flat), 1)).sum())
    expected = num_pairs * (1 - equal_by_chance)
    if expected < _MIN_CHANGES or num_pairs - num_equal > _MAX_FRACTION * expected:
        return ""
    return (
        f"samples are sorted by label: {num_equal / num_pairs:.0%} of them are followed by one of "
        f"their class, and {equal_by_chance:.0%} would be if they were shuffled. Training shuffles "
        "within some thousand samples, so its batches may hold few classes. `webdataset` writes "
        "them shuffled."
    )


def describe_untrained(in_train: Iterable[str], in_val: Iterable[str]) -> str:
    """Describe the classes that occur only in val; empty if there are none."""
    names = sorted({*in_val} - {*in_train})
    if not names:
        return ""
    return (
        f"{pluralize(len(names), 'class')} of val without an image in train: "
        f"{truncated_list(names)}. Nothing can learn them, so their images in val count as wrong: "
        "add training images, move some of val there, or leave these classes out."
    )


def warn(subject: str, sentences: Iterable[str]) -> None:
    """Log those sentences about a split or directory that are not empty."""
    for sentence in filter(None, sentences):
        log.warning("%s: %s", subject, sentence)
