"""Remarks on shards that are read: what was passed over in them, and what is odd."""

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
    MORE_IMAGES: "a sample is named up to the first dot of its files: if these are samples of "
    "their own, replace the other dots in their names by '_'",
    MORE_ARCHIVES: "some files are several tars one behind the other, and all are read: plain "
    "`tar` and webdataset stop at the end of the first",
    REPEATED_KEY: "some keys come again in their shard, perhaps since files were added twice: "
    "--dedupe leaves out of train what has the same bytes",
}


def describe(passed_over: Tally, remarks: Tally) -> list[str]:
    """Return sentences about what was passed over and what is odd; none if there is nothing."""
    odd = Tally()
    odd.merge(passed_over)
    odd.merge(remarks)
    told = Tally()
    for kind, num in odd.counts.items():
        if kind not in _EXPECTED:
            told.add(kind, odd.firsts[kind], num)
    hints = [hint for kind, hint in _HINTS.items() if kind in told.counts]
    return [f"passed over or odd: {told}", *hints] if told.counts else []


def describe_scans(scans: Sequence[Scan]) -> list[str]:
    """Return sentences about what was passed over in shards, and what is odd in them."""
    passed_over = Tally.sum_of(scan.passed_over for scan in scans)
    return describe(passed_over, Tally.sum_of(scan.remarks for scan in scans))


def warn(split: str, sentences: Iterable[str]) -> None:
    """Log sentences about a split, if there are any."""
    for sentence in sentences:
        if sentence:
            log.warning("%s: %s", split, sentence)


def describe_left(names: Sequence[str], taken: Iterable[str]) -> str:
    """Return which files of a directory look like shards and are not taken; nothing if none is."""
    left = sorted({name for name in names if _LIKE_A_SHARD.fullmatch(name)} - {*taken})
    if not left:
        return ""
    return (
        f"files that look like shards and are not used: {len(left):,} (first {left[0]}). A shard "
        "is a plain .tar: if they belong to the set, unpack what is compressed, and index again."
    )
