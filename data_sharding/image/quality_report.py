"""What was found in the images of a data set, by rule: how many, and the names of the first.

Nothing is changed, left out or kept in an odd state without being listed here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_NAMES = 300

# What is done with an image to which a rule applies.
RULES = {
    "corrupt": "cannot be decoded: left out",
    "too_large": "more pixels than are decoded (a bomb would fill the memory): left out",
    "damaged": "decode with damage, so that parts are grey or wrong: kept",
    "damaged_left_out": "decode with damage, so that parts are grey or wrong: left out",
    "leak": "training images that lie in val too: left out of train",
    "duplicate": "later copies of the same bytes in train: left out",
    "duplicate_in_val": "later copies of the same bytes in val: kept",
    "linked_twice": "files listed again through links: kept; --dedupe takes them for copies",
    "label_conflict": "copies whose labels differ: those of val stay, else the first, link or not",
    "wrong_extension": "stored under the extension of what they are",
    "exif_orientation": "left alone, as in the reference ImageNet pipelines",
    "progressive": "stored as they are; slower to decode",
    "cmyk": "stored as they are; converted when read",
    "palette": "stored as they are; converted when read",
    "alpha": "stored as they are; transparency is dropped when read",
    "16_bit": "stored as they are; converted to 8 bits when read",
    "few_levels": "16 bits and all dark, as if 12 were used, say: --bit-depth 12 scales greys",
    "widened": "greys of fewer bits in files of 16: scaled, and stored as PNG",
    "animated": "stored as they are; the first frame is read",
    "shrunk": "larger than asked for: resized and encoded anew",
}
_WITHOUT_NAMES = frozenset(("progressive", "shrunk", "widened"))  # these are ordinary


@dataclass
class QualityFindings:
    """How many images each rule applies to, and what is to be said of the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, name: str) -> None:
        """Note one image."""
        self.merge(QualityFindings(Counter({rule: 1}), {rule: [name]}))

    def merge(self, other: "QualityFindings") -> None:
        """Add what was found in images that come after these."""
        self.counts.update(other.counts)
        for rule, names in other.names.items():
            if rule not in _WITHOUT_NAMES:
                mine = self.names.setdefault(rule, [])
                mine += names[: MAX_NAMES - len(mine)]


def report(
    findings: QualityFindings, numbers: Mapping[str, int], passed_over: "QualityFindings"
) -> dict[str, Any]:
    """Return what `report.json` says.

    Args:
        numbers: of files and bytes; "num_files" is what shares are of.
        passed_over: files that are no samples, by kind.
    """
    num_files = numbers["num_files"]
    rules = {
        rule: {
            "meaning": meaning,
            "count": findings.counts[rule],
            "share": findings.counts[rule] / num_files,
            "names": findings.names.get(rule, []),
        }
        for rule, meaning in RULES.items()
        if findings.counts[rule]
    }
    over = {"passed_over": dict(passed_over.counts), "passed_over_names": passed_over.names}
    return {**numbers, **over, "rules": rules}
