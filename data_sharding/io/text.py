"""Numbers, names and counts in sentences: `1 image`, `1,000 images`, `a, b and 3 more`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def pluralize(number: int, noun: str) -> str:
    """Format a number with its noun.

    >>> pluralize(1, "run"), pluralize(1438, "image"), pluralize(2, "class")
    ('1 run', '1,438 images', '2 classes')
    """
    plural = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number:,} {noun}{plural}"


def truncated_list(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Join the first `most` names, and say how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


@dataclass
class Tally:
    """The number of occurrences of each kind, and the name of the first, for a line of a report."""

    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, num: int = 1) -> None:
        """Count `num` occurrences of a kind, the first of them called `name`."""
        self.counts[kind] += num
        self.firsts.setdefault(kind, name)

    def merge(self, other: "Tally") -> None:
        """Add the counts of another tally behind these."""
        for kind, num in other.counts.items():
            self.add(kind, other.firsts[kind], num)

    def within(self, prefix: str) -> "Tally":
        """Return the same counts with the names prefixed."""
        names = {kind: f"{prefix}: {name}" for kind, name in self.firsts.items()}
        return Tally(self.counts, names)

    @classmethod
    def sum_of(cls, tallies: "Iterable[Tally]") -> "Tally":
        """Add up tallies, in their order."""
        total = cls()
        for tally in tallies:
            total.merge(tally)
        return total

    def __str__(self) -> str:
        kinds = self.counts.most_common()
        return ", ".join(f"{kind}: {num:,} (first {self.firsts[kind]})" for kind, num in kinds)
