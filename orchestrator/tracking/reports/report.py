"""The page that the project exists for: what was published, what was measured, and at what cost.

Two kinds of points: a system's error as its paper has it, and the error of one's own runs of it, a
point for each row of `compare` with the range of its seeds. Both lie at the system's year.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from orchestrator.number_format import pluralize
from orchestrator.tracking.records.catalog import CatalogEntry
from orchestrator.tracking.records.record import Record
from orchestrator.tracking.reports.compare import ComparableGroup, MeanStd, RunGroup, compare

TOP = {1: "top-1", 5: "top-5"}
Axis = Literal["year", "petaflop", "num_params", "device_hours"]


@dataclass(frozen=True)
class ResultPoint:
    """A system's error in percent, with what it took; None where that is not known.

    Args:
        top1, top5: the mean over runs, where it was measured.
        top1_std, top5_std: the sample standard deviation of the error that is drawn, over runs.
        is_verified: whether somebody has read a published error in its source.
        is_ensemble: whether it is the error of several networks, on the challenge's test images.
    """

    system: str
    year: int | None
    protocol: str
    top1: float | None
    top5: float | None
    num_params: float | None
    petaflop: float | None
    device_hours: float | None
    source: str
    is_measured: bool
    is_verified: bool = True
    is_ensemble: bool = False
    num_runs: int = 0
    top1_std: float | None = None
    top5_std: float | None = None

    def error(self, top: int) -> float | None:
        return self.top1 if top == 1 else self.top5

    def std(self, top: int) -> float | None:
        return self.top1_std if top == 1 else self.top5_std

    @property
    def label(self) -> str:
        """What the point is called in a figure: a run of one's own by its name."""
        if self.is_measured and self.num_runs == 1:
            return self.source
        return (
            f"{self.system} ({pluralize(self.num_runs, 'run')})" if self.num_runs else self.system
        )

    def at(self, axis: Axis) -> float | None:
        return getattr(self, axis)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ResultsReport:
    """What a page shows of one data set.

    Args:
        protocols: that were measured under.
        other_protocols: the protocols of runs on the same images that are not drawn.
        fingerprint: of the images that were measured on.
        other_images: fingerprints of other images by the same name, whose runs are not drawn.
    """

    data: str
    protocols: tuple[str, ...]
    points: tuple[ResultPoint, ...]
    sections: tuple[ComparableGroup, ...]
    other_protocols: tuple[str, ...]
    fingerprint: str | None = None
    other_images: tuple[str, ...] = ()

    @property
    def measured(self) -> list[ResultPoint]:
        return [point for point in self.points if point.is_measured]

    @property
    def published(self) -> list[ResultPoint]:
        return [point for point in self.points if not point.is_measured]

    def to_dict(self) -> dict[str, Any]:
        points = [asdict(point) for point in self.points]
        known = {
            "data": self.data,
            "protocols": self.protocols,
            "passed_over": self.other_protocols,
        }
        images = {"fingerprint": self.fingerprint, "other_images": self.other_images}
        return {**known, **images, "points": points}


def report(
    records: Sequence[Record],
    systems: Iterable[CatalogEntry],
    data: str,
    protocol: str | None = None,
) -> ResultsReport:
    """Return the report of a data set: of several by one name, of the one with most runs.

    Args:
        protocol: of the measured points, or a pattern of several which the caller knows to compare,
            such as those that judge the same whole images at other sizes; None: the one that most
            runs were judged under.
    """
    named = [section for section in compare(records) if section.data == data]
    meant = [one for one in named if protocol is None or fnmatchcase(one.protocol, protocol)]
    most = max(meant, key=lambda section: section.num_runs, default=None)
    sections = [one for one in named if most and one.fingerprint == most.fingerprint]
    drawn = tuple(one for one in sections if one is most or (protocol and one in meant))
    others = {one.protocol for one in sections if one not in drawn}
    points = [p for one in systems if one.published["dataset"] == data for p in _published(one)]
    points += [_measured(row, section) for section in drawn for row in section.rows]
    ready = [point for point in points if point.top1 is not None or point.top5 is not None]
    order = sorted(ready, key=lambda p: (p.is_measured, p.year or 9999, p.system))
    under = tuple(dict.fromkeys(one.protocol for one in drawn))
    return ResultsReport(
        data,
        under,
        tuple(order),
        drawn,
        other_protocols=tuple(sorted(others)),
        fingerprint=most.fingerprint if most else None,
        other_images=tuple({str(one.fingerprint): None for one in named if one not in sections}),
    )


def _published(one: CatalogEntry) -> Iterator[ResultPoint]:
    """Yield a single network's point, and that of the ensemble that took part in the challenge."""
    said = one.published
    single = ResultPoint(
        system=said["title"],
        year=said["year"],
        protocol=said["protocol"] or "",
        top1=said["top1_err"],
        top5=said["top5_err"],
        num_params=said["num_params"],
        petaflop=said["petaflop"],
        device_hours=None,  # papers say days, and on what; no two mean the same by it
        source=said["source"],
        is_measured=False,
        is_verified=said["verified"],
    )
    yield single
    if said["ensemble_top5_err"] is not None:
        size, place = said["ensemble_size"], said["ilsvrc_place"]
        yield replace(
            single,
            system=f"{single.system}, {size or 'several'} networks",
            protocol="ILSVRC's test images" + (f", place {place}" if place else ""),
            top1=None,
            top5=said["ensemble_top5_err"],
            num_params=None,
            petaflop=None,
            is_ensemble=True,
        )


def _measured(row: RunGroup, section: ComparableGroup) -> ResultPoint:
    first, figures = row.records[0], row.figures
    top1, top5 = (_error(figures.get(name)) for name in ("val/top1", "val/top5"))
    device_s = figures.get("device_s")
    params, petaflop = figures.get("model/num_params"), figures.get("petaflop")
    return ResultPoint(
        system=first.model_title,
        year=first.published.get("year"),
        protocol=section.protocol,
        top1=top1.mean if top1 else None,
        top5=top5.mean if top5 else None,
        num_params=params.mean if params else None,
        petaflop=petaflop.mean if petaflop else None,
        device_hours=device_s.mean / 3600 if device_s else None,
        source=row.name,
        is_measured=True,
        num_runs=len(row.records),
        top1_std=top1.std if top1 else None,
        top5_std=top5.std if top5 else None,
    )


def _error(accuracy: MeanStd | None) -> MeanStd | None:
    if accuracy is None or not math.isfinite(accuracy.mean):  # a run that diverged has no error
        return None
    return MeanStd(100 - accuracy.mean, accuracy.std, accuracy.num)
