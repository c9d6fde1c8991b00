"""Counts by kind, with the name of the first occurrence of each, for one line of a report."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """The number of occurrences of each kind, and the name of the first."""

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
