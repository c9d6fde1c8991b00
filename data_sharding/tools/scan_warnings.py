"""Warnings about shards that were read: what was passed over in them, and what is odd."""

import logging
import re
from collections.abc import Iterable, Sequence

from data_sharding.format.tar_samples import (
    DIRECTORY,
    METADATA,
    MORE_ARCHIVES,
    MORE_IMAGES,
    REPEATED_KEY,
    SYMLINK,
)
from data_sharding.io.tally import Tally
from data_sharding.tools.scan import Scan

log = logging.getLogger(__name__)

_LIKE_A_SHARD = re.compile(
    r"[^.].*\.(?:tar(?:\.(?:gz|bz2|xz|zst|lz4|lzma|z))?|t[gbx]z2?|tzst)", re.IGNORECASE
)
_EXPECTED = (DIRECTORY, METADATA)  # hold no data
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
    total = Tally.sum_of([*(s.passed_over for s in scans), *(s.remarks for s in scans)])
    odd = Tally()
    for kind, num in total.counts.items():
        if kind not in _EXPECTED:
            odd.add(kind, total.firsts[kind], num)
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


def warn(subject: str, sentences: Iterable[str]) -> None:
    """Log those sentences about a split or directory that are not empty."""
    for sentence in filter(None, sentences):
        log.warning("%s: %s", subject, sentence)
