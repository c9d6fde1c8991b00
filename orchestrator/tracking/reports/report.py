"""Collect the points of a report: published and measured errors, and their costs.

There are two kinds: the error in a system's paper, and the mean error of one's own runs of it, one
point for each row of `compare`. Both have the year of the paper.
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
    """The errors of a system in percent, and their cost; None where a value is not known.

    Args:
        top1, top5: the published error, or the mean over runs.
        top1_std, top5_std, map_std: the sample standard deviation over runs.
        map: the mean average precision in percent, of images with several labels.
        is_verified: whether a published error was checked against its source.
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
    map: float | None = None
    map_std: float | None = None

    def error(self, top: int) -> float | None:
        return self.top1 if top == 1 else self.top5

    def std(self, top: int) -> float | None:
        return self.top1_std if top == 1 else self.top5_std

    @property
    def label(self) -> str:
        """The name of the point in a figure."""
        if self.is_measured and self.num_runs == 1:
            return self.source
        runs = f" ({pluralize(self.num_runs, 'run')})" if self.num_runs else ""
        return f"{self.system}{runs}"

    def at(self, axis: Axis) -> float | None:
        return getattr(self, axis)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ResultsReport:
    """The results on one data set.

    Args:
        protocols: the protocols of the drawn runs.
        other_protocols: the protocols of runs on the same images that are not drawn.
        fingerprint: the fingerprint of the images of the drawn runs.
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
        return {
            "data": self.data,
            "protocols": self.protocols,
            "other_protocols": self.other_protocols,
            "fingerprint": self.fingerprint,
            "other_images": self.other_images,
            "points": [asdict(point) for point in self.points],
        }


def report(
    records: Sequence[Record],
    entries: Iterable[CatalogEntry],
    data: str,
    protocol: str | None = None,
) -> ResultsReport:
    """Collect the results on a data set; of several with one name, on that with most runs.

    Args:
        protocol: the protocol of the measured points, or a pattern of several that compare, such as
            those that evaluate the same images at different sizes; None for the one with most runs.
    """
    named = [section for section in compare(records) if section.data == data]
    matching = [one for one in named if protocol is None or fnmatchcase(one.protocol, protocol)]
    largest = max(matching, key=lambda section: section.num_runs, default=None)
    sections = [one for one in named if largest and one.fingerprint == largest.fingerprint]
    drawn = tuple(one for one in sections if one is largest or (protocol and one in matching))
    published = [entry for entry in entries if entry.published["dataset"] == data]
    points = [point for entry in published for point in _published_points(entry)]
    points += [_measured_point(row, section) for section in drawn for row in section.rows]
    known = [point for point in points if {point.top1, point.top5, point.map} != {None}]
    known.sort(key=lambda point: (point.is_measured, point.year or 9999, point.system))
    return ResultsReport(
        data,
        tuple(dict.fromkeys(section.protocol for section in drawn)),
        tuple(known),
        drawn,
        other_protocols=tuple(sorted({one.protocol for one in sections if one not in drawn})),
        fingerprint=largest.fingerprint if largest else None,
        other_images=tuple({str(one.fingerprint): None for one in named if one not in sections}),
    )


def _published_points(entry: CatalogEntry) -> Iterator[ResultPoint]:
    """Yield the point of a single network, and that of its ensemble in the challenge."""
    published = entry.published
    single = ResultPoint(
        system=published["title"],
        year=published["year"],
        protocol=published["protocol"] or "",
        top1=published["top1_err"],
        top5=published["top5_err"],
        num_params=published["num_params"],
        petaflop=published["petaflop"],
        device_hours=None,  # papers have days of different devices, which do not compare
        source=published["source"],
        is_measured=False,
        is_verified=published["verified"],
    )
    yield single
    if published["ensemble_top5_err"] is not None:
        size, place = published["ensemble_size"], published["ilsvrc_place"]
        yield replace(
            single,
            system=f"{single.system}, {size or 'several'} networks",
            protocol="ILSVRC's test images" + (f", place {place}" if place else ""),
            top1=None,
            top5=published["ensemble_top5_err"],
            num_params=None,
            petaflop=None,
            is_ensemble=True,
        )


def _measured_point(row: RunGroup, section: ComparableGroup) -> ResultPoint:
    first, metrics = row.records[0], row.metrics
    top1, top5 = (_error(metrics.get(name)) for name in ("val/top1", "val/top5"))
    precision = metrics.get("val/map")
    is_known = precision is not None and math.isfinite(precision.mean)
    device_s = metrics.get("device_s")
    params, petaflop = metrics.get("model/num_params"), metrics.get("petaflop")
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
        map=precision.mean if precision and is_known else None,
        map_std=precision.std if precision and is_known else None,
    )


def _error(accuracy: MeanStd | None) -> MeanStd | None:
    if accuracy is None or not math.isfinite(accuracy.mean):  # of a diverged run
        return None
    return MeanStd(100 - accuracy.mean, accuracy.std, accuracy.num)
