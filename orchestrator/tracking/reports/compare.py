"""Compare runs: their differences, their metrics, and the deviation over seeds and folds.

Runs that differ only in the seed or the fold are one row. Only metrics on the same images, which
may be several folds, under the same protocol are ranked.
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
FOLD = "data.fold"

_SAMPLED = ("seed", FOLD)  # keys that runs of one row may differ in


_COSTS = ("training_s", "device_s", "images_per_s", "petaflop", "num_images")  # fields of Record


@dataclass(frozen=True)
class MeanStd:
    """The mean and the sample standard deviation of a metric; no deviation for one run.

    The mean is NaN if a value is not finite.
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
        if len(known) > 1:  # neither overflows for a huge loss
            std = math.hypot(*(value - mean for value in known)) / math.sqrt(len(known) - 1)
        return cls(mean, std, len(known))


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in their seeds and folds.

    Args:
        differs: the values of the config's keys that are not the same in all rows.
        metrics: the last values, over runs.
        older: excluded runs, whose seed a newer run has too.
    """

    records: tuple[Record, ...]
    differs: dict[str, str]
    metrics: dict[str, MeanStd]
    older: tuple[Record, ...] = ()

    @property
    def name(self) -> str:
        return self.records[0].id if len(self.records) == 1 else f"{len(self.records)} runs"

    @property
    def rank(self) -> tuple[float, ...]:
        """The sort key of rows, lower for better ones."""
        means = {name: self.metrics[name].mean for name in RANKED_BY if name in self.metrics}
        return tuple(
            -score(name, means[name]) if math.isfinite(means.get(name, math.nan)) else math.inf
            for name in RANKED_BY
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": [
                {"id": one.id, "path": one.path, "status": one.status, "weights": one.weights}
                for one in self.records
            ],
            "differs": self.differs,
            "metrics": {name: asdict(value) for name, value in self.metrics.items()},
            "older": [record.path for record in self.older],
        }


@dataclass(frozen=True)
class ComparableGroup:
    """Rows whose metrics compare, on the same images and protocol; the best is first.

    Args:
        folds: the folds that the runs of every row were validated on.
    """

    data: str
    fingerprint: str | None
    protocol: str
    folds: tuple[int, ...]
    rows: tuple[RunGroup, ...]

    @property
    def num_runs(self) -> int:
        return sum(len(row.records) for row in self.rows)

    @property
    def title(self) -> str:
        folds = f", folds {', '.join(map(str, self.folds))}" if self.folds else ""
        return f"{self.data}{folds}, {self.protocol}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "protocol": self.protocol,
            "folds": self.folds,
            "rows": [row.to_dict() for row in self.rows],
        }


def compare(records: Sequence[Record]) -> list[ComparableGroup]:
    """Group runs into rows, in a section for each data set and protocol."""
    all_keys = dict.fromkeys(key for record in records for key in record.config)
    keys = [key for key in all_keys if key not in _SAMPLED and not is_mutable_key(key)]
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[_identity(record, keys)].append(record)
    firsts = [group[0] for group in groups.values()]
    swept = [key for key in keys if len({repr(one.config.get(key, ABSENT)) for one in firsts}) > 1]
    sections: dict[tuple[str, str | None, str, tuple[int, ...]], list[RunGroup]] = defaultdict(list)
    for group in groups.values():
        first = group[0]
        differs = {key: _text(first, key) for key in swept}
        current, older = _newest_of_each_seed(group)
        data, protocol = _text(first, "data.name"), _text(first, "data.eval_protocol")
        sections[data, first.data_fingerprint, protocol, _folds(current)].append(
            RunGroup(current, differs, _metrics(current), older)
        )
    return [
        ComparableGroup(*section, tuple(sorted(rows, key=lambda row: row.rank)))
        for section, rows in sorted(sections.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def _folds(records: Iterable[Record]) -> tuple[int, ...]:
    """Return the folds that runs were validated on."""
    folds = {record.config.get(FOLD) for record in records}
    return tuple(sorted(fold for fold in folds if fold is not None))


def _newest_of_each_seed(
    group: Sequence[Record],
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Split runs into the newest of each seed and fold, and the others: no further samples."""
    newest: dict[tuple[str, str], Record] = {}
    for record in sorted(group, key=lambda record: record.created_s or 0.0):
        seed = record.config.get("seed", record.path)
        newest[repr(seed), repr(record.config.get(FOLD))] = record
    paths = {record.path for record in newest.values()}
    return (
        tuple(record for record in group if record.path in paths),
        tuple(record for record in group if record.path not in paths),
    )


def _identity(record: Record, keys: Sequence[str]) -> tuple[Any, ...]:
    """Return the values that runs of one row share: data, initial weights, config and length.

    An imported result has no config to compare, so it is a row of its own.
    """
    config = repr([record.config.get(key, ABSENT) for key in keys])
    length = "complete" if record.status == "finished" else record.step
    imported = record.path if record.status == IMPORTED else None
    init_weights = (record.init_from or {}).get("sha256")
    return (record.data_fingerprint, init_weights, config, length, imported)


def _text(record: Record, key: str) -> str:
    return truncate_json(record.config[key], 1000) if key in record.config else ABSENT


def _metrics(group: Sequence[Record]) -> dict[str, MeanStd]:
    names = dict.fromkeys(name for record in group for name in record.metrics)
    values = {name: MeanStd.of(record.metrics.get(name) for record in group) for name in names}
    costs = {name: MeanStd.of(getattr(record, name) for record in group) for name in _COSTS}
    return {name: value for name, value in (values | costs).items() if value}
