"""Runs side by side: in what they differ, what came out, and how far that spreads over seeds.

Runs that differ in nothing but the seed are one row. Only figures of the same images under the same
protocol are ranked.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.parse import is_mutable_key
from orchestrator.metrics import RANKED_BY, score
from orchestrator.redact import truncate_json
from orchestrator.tracking.records.record import IMPORTED, Record

ABSENT = "-"


@dataclass(frozen=True)
class MeanStd:
    """The values of one figure over the runs of a row; `std` is the sample's, None for one run.

    Where one run's is not finite, there is no mean: NaN.
    """

    mean: float
    std: float | None
    num: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "MeanStd | None":
        known = [value for value in values if value is not None]
        if not known:
            return None
        if not all(map(math.isfinite, known)):
            return cls(math.nan, None, len(known))
        mean, std = math.fsum(value / len(known) for value in known), None
        if len(known) > 1:  # neither overflows where a loss is about to
            std = math.hypot(*(value - mean for value in known)) / math.sqrt(len(known) - 1)
        return cls(mean, std, len(known))


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seeds alone.

    Args:
        differs: the keys of the config that are not the same in all rows, with what they are here.
        figures: the last of each run, over runs.
        older: runs of a seed that a newer run has too, which are in no figure.
    """

    records: tuple[Record, ...]
    differs: dict[str, str]
    figures: dict[str, MeanStd]
    older: tuple[Record, ...] = ()

    @property
    def name(self) -> str:
        return self.records[0].id if len(self.records) == 1 else f"{len(self.records)} runs"

    @property
    def rank(self) -> tuple[float, ...]:
        """The sort key of rows, lower for better ones."""
        means = {name: self.figures[name].mean for name in RANKED_BY if name in self.figures}
        return tuple(
            -score(name, means[name]) if math.isfinite(means.get(name, math.nan)) else math.inf
            for name in RANKED_BY
        )

    def to_dict(self) -> dict[str, Any]:
        runs = [
            {"id": one.id, "path": one.path, "status": one.status, "weights": one.weights}
            for one in self.records
        ]
        figures = {name: asdict(spread) for name, spread in self.figures.items()}
        older = [one.path for one in self.older]
        return {"runs": runs, "differs": self.differs, "figures": figures, "older": older}


@dataclass(frozen=True)
class ComparableGroup:
    """Rows whose figures compare: of the same images and protocol. The best is first."""

    data: str
    fingerprint: str | None
    protocol: str
    rows: tuple[RunGroup, ...]

    @property
    def num_runs(self) -> int:
        return sum(len(row.records) for row in self.rows)

    @property
    def title(self) -> str:
        return f"{self.data}, {self.protocol}"

    def to_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.rows]
        known = {"data": self.data, "fingerprint": self.fingerprint, "protocol": self.protocol}
        return {**known, "rows": rows}


def compare(records: Sequence[Record]) -> list[ComparableGroup]:
    """Return runs as rows, in a section for each data set and protocol."""
    alike: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    deciding = [key for key in _keys(records) if _decides(key)]
    for record in records:
        alike[_identity(record, deciding)].append(record)
    groups = list(alike.values())
    keys = _differing([group[0] for group in groups], deciding)
    places: dict[tuple[str, str | None, str], list[RunGroup]] = defaultdict(list)
    for group in groups:
        first = group[0]
        differs = {key: _text(first, key) for key in keys}
        kept, older = _newest_of_each_seed(group)
        row = RunGroup(kept, differs, _figures(kept), older)
        place = (
            _text(first, "data.name"),
            first.data_fingerprint,
            _text(first, "data.eval_protocol"),
        )
        places[place].append(row)
    return [
        ComparableGroup(*place, tuple(sorted(rows, key=lambda row: row.rank)))
        for place, rows in sorted(places.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def _newest_of_each_seed(
    group: Sequence[Record],
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return the runs that count, and the others: done again, a seed is no further sample."""
    newest: dict[str, Record] = {}
    for one in sorted(group, key=lambda one: one.created_s or 0.0):
        newest[repr(one.config.get("seed", one.path))] = one
    kept = {one.path for one in newest.values()}
    return (
        tuple(one for one in group if one.path in kept),
        tuple(one for one in group if one.path not in kept),
    )


def _identity(record: Record, deciding: Sequence[str]) -> tuple[Any, ...]:
    """Return what runs that differ in the seed alone have in common, and that came as far.

    What was imported has no config by which it could be told to differ in the seed alone.
    """
    kept = repr([record.config.get(key, ABSENT) for key in deciding])
    reached = "the end" if record.status == "finished" else record.step
    alone = record.path if record.status == IMPORTED else None
    return (record.data_fingerprint, (record.init_from or {}).get("sha256"), kept, reached, alone)


def _keys(records: Sequence[Record]) -> dict[str, None]:
    """Return the keys of all configs, in their order."""
    return dict.fromkeys(key for record in records for key in record.config)


def _decides(key: str) -> bool:
    """Whether a key decides what comes out, seeds left aside."""
    return key != "seed" and not is_mutable_key(key)


def _differing(records: Sequence[Record], deciding: Sequence[str]) -> list[str]:
    """Return the keys, of those that decide what comes out, in which runs differ."""
    return [
        key for key in deciding if len({repr(one.config.get(key, ABSENT)) for one in records}) > 1
    ]


def _text(record: Record, key: str) -> str:
    return truncate_json(record.config[key], 1000) if key in record.config else ABSENT


def _figures(group: Sequence[Record]) -> dict[str, MeanStd]:
    names = dict.fromkeys(name for record in group for name in record.metrics)
    found = {name: MeanStd.of(record.metrics.get(name) for record in group) for name in names}
    for name in ("training_s", "device_s", "images_per_s", "petaflop", "num_images"):
        found[name] = MeanStd.of(getattr(record, name) for record in group)
    return {name: spread for name, spread in found.items() if spread}
