"""Things counted by kind, with the name of the first of each: for one line of a report."""

from collections import Counter
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

    def merge(self, other: "Tally", where: str = "") -> None:
        """Add what was counted after these; `where` goes before its names."""
        for kind, num in other.counts.items():
            self.add(kind, where + other.firsts[kind], num)

    def __str__(self) -> str:
        kinds = self.counts.most_common()
        return ", ".join(f"{kind}: {num:,} (first {self.firsts[kind]})" for kind, num in kinds)
