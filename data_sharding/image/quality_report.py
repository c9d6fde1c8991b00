"""Count the oddities of a data set's images by rule, with the names of the first.

Nothing is changed, left out or kept in an odd state without being listed here.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_NAMES = 300

# The treatment of images to which a rule applies.
RULES = {
    "corrupt": "cannot be decoded: left out",
    "too_large": "over 89 megapixels, more than is decoded: left out",
    "damaged": "decode with damage, so that parts are grey or wrong: kept",
    "damaged_left_out": "decode with damage, so that parts are grey or wrong: left out",
    "leak": "training images that are also in val: left out of train",
    "duplicate": "later copies of the same bytes in train or in folds: left out",
    "duplicate_in_val": "later copies of the same bytes in val: kept",
    "linked_twice": "files listed again through links: kept; `dedupe` treats them as copies",
    "label_conflict": "copies with different labels: val's is kept, else the first, link or not",
    "heif": "HEIC or HEIF: decoded and stored as JPEG, which all readers know",
    "wrong_extension": "stored under the extension of their content",
    "exif_orientation": "left alone, as in the reference ImageNet pipelines",
    "progressive": "stored as they are; slower to decode",
    "cmyk": "stored as they are; converted when read",
    "palette": "stored as they are; converted when read",
    "alpha": "stored as they are; transparency is dropped when read",
    "16_bit": "stored as they are; converted to 8 bits when read",
    "few_levels": "16 bits and all dark, as if only 12 were used: `bit_depth` 12 scales greys",
    "widened": "greys of fewer bits in files of 16: scaled, and stored as PNG",
    "animated": "stored as they are; the first frame is read",
    "shrunk": "larger than requested: resized and encoded again",
}
_WITHOUT_NAMES = frozenset(("heif", "progressive", "shrunk", "widened"))  # too common to list


@dataclass
class QualityFindings:
    """The number of images that each rule applies to, and the names of the first MAX_NAMES."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, name: str) -> None:
        """Add an image to which a rule applies."""
        self.merge(QualityFindings(Counter({rule: 1}), {rule: [name]}))

    def merge(self, other: "QualityFindings") -> None:
        """Add the findings of later images."""
        self.counts.update(other.counts)
        for rule, names in other.names.items():
            if rule not in _WITHOUT_NAMES:
                first_names = self.names.setdefault(rule, [])
                first_names += names[: MAX_NAMES - len(first_names)]


def report(
    findings: QualityFindings, totals: Mapping[str, int], skipped: QualityFindings
) -> dict[str, Any]:
    """Return the content of `quality_report.json`.

    Args:
        totals: numbers of files and bytes, among them "num_files".
        skipped: files that are no samples, by kind.
    """
    rules = {
        rule: {
            "meaning": meaning,
            "count": findings.counts[rule],
            "share": findings.counts[rule] / totals["num_files"],
            "names": findings.names.get(rule, []),
        }
        for rule, meaning in RULES.items()
        if findings.counts[rule]
    }
    files = {"passed_over": dict(skipped.counts), "passed_over_names": skipped.names}
    return {**totals, **files, "rules": rules}
