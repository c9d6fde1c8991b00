"""Things counted by kind, with the name of the first of each: for one line of a report."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """How many of each kind there are, and the first."""

    counts: Counter[str] = field(default_factory=Counter)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, num: int = 1) -> None:
        """Count some of a kind; `name` is that of the first of them."""
        self.counts[kind] += num
        self.firsts.setdefault(kind, name)

    def merge(self, other: "Tally") -> None:
        """Add what was counted after these."""
        for kind, num in other.counts.items():
            self.add(kind, other.firsts[kind], num)

    def within(self, place: str) -> "Tally":
        """Return the same with names that begin with a place."""
        names = {kind: f"{place}: {name}" for kind, name in self.firsts.items()}
        return Tally(self.counts, names)

    @classmethod
    def sum_of(cls, tallies: "Iterable[Tally]") -> "Tally":
        """Return what several tallies have counted, in their order."""
        total = cls()
        for tally in tallies:
            total.merge(tally)
        return total

    def __str__(self) -> str:
        kinds = self.counts.most_common()
        return ", ".join(f"{kind}: {num:,} (first {self.firsts[kind]})" for kind, num in kinds)
