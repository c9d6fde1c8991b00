"""Figures that others have published, as runs in MLflow, beside which its pages show one's own.

Each is a finished run with the figures twice: as `published/...`, and as the accuracies that one's
own runs log, `val/top1` and `val/top5`, so that one chart shows both. Importing again adds nothing.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from data_sharding.io import filesystem
from orchestrator.redact import mlflow_safe_name, truncate_json
from orchestrator.run.metric_stream import as_stored
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import (
    Metric,
    MlflowClient,
    Run,
    RunTag,
    experiment_id,
    open_client,
    search_all,
)
from orchestrator.tracking.mlflow_store.run_metadata import MAX_TAG_CHARACTERS, user
from orchestrator.tracking.records.catalog import CatalogEntry

UID_TAG = "tahoe.uid"
_KIND_TAG = "tahoe.imported"
_TIMM_COLUMNS = {"model", "img_size", "top1", "top5", "param_count", "crop_pct", "interpolation"}


@dataclass(frozen=True)
class ExternalResult:
    """A run to be made: `uid` tells whether it is there already, `kind` where it is from."""

    uid: str
    kind: str
    name: str
    year: int | None
    tags: Mapping[str, Any]
    metrics: Mapping[str, float]


def published_results(systems: Iterable[CatalogEntry]) -> Iterator[ExternalResult]:
    """Yield what the papers of the shelf have."""
    for one in systems:
        said = one.published
        numbers = {k: float(v) for k, v in said.items() if _is_number(v) and k != "year"}
        metrics = {f"published/{key}": value for key, value in numbers.items()}
        for top in ("top1", "top5"):
            if f"{top}_err" in numbers:
                metrics[f"val/{top}"] = 100 - numbers[f"{top}_err"]
        texts = ("title", "venue", "hardware", "training_time", "source", "verified")
        tags = {f"published/{key}": said[key] for key in texts}
        known = {"model": one.model["name"], "data": said["dataset"], "protocol": said["protocol"]}
        yield ExternalResult(
            f"published:{one.name}",
            "published",
            f"{said['title']}, as published",
            said["year"],
            {**known, "year": said["year"], **tags},
            metrics,
        )


def timm_results(url: str) -> Iterator[ExternalResult]:
    """Yield the rows of a results file of timm, such as results-imagenet.csv in its repository.

    Raises:
        RunError: it cannot be read, or is none.
    """
    try:
        text = filesystem.read_bytes(url).decode()
    except (OSError, ValueError) as error:  # no text, or no such kind of URL
        raise RunError(f"{url} cannot be read: {error}. Nothing was imported.") from error
    rows = csv.DictReader(io.StringIO(text))
    missing = _TIMM_COLUMNS - {*(rows.fieldnames or ())}
    if missing:
        raise RunError(
            f"{url} is no results file of timm: it has no {', '.join(sorted(missing))}. Nothing "
            "was imported. They are github.com/huggingface/pytorch-image-models, results/*.csv"
        )
    data = _images_of(url)
    for number, row in enumerate(rows, start=2):
        try:
            yield _timm_result(row, data, url)
        except (AttributeError, TypeError, ValueError) as error:
            raise RunError(
                f"{url}, line {number}: a cell is empty or no number ({error}). The lines before "
                "it are imported. Correct it, and run the same command."
            ) from error


def _timm_result(row: Mapping[str, str], data: str, url: str) -> ExternalResult:
    size, share = int(row["img_size"]), float(row["crop_pct"])
    on = "" if data == "imagenet" else f" on {data}"
    return ExternalResult(
        f"timm:{row['model']}@{size}{on}",
        "timm",
        f"{row['model']} at {size}{on}, by timm",
        None,
        {
            "model": f"timm/{row['model']}",
            "data": data,
            "protocol": f"center-{size}-of-{int(size / share)}",
            "interpolation": row["interpolation"],
            "published/source": url,
        },
        {
            "val/top1": float(row["top1"]),
            "val/top5": float(row["top5"]),
            "model/num_params": 1e6 * float(row["param_count"].replace(",", "")),
        },
    )


def _images_of(url: str) -> str:
    """Return on which images a file of timm's is: results-imagenet-real.csv is on imagenet-real."""
    match = re.search(r"(?:^|/)results-([^/]+)\.csv$", url)
    if match is None:
        raise RunError(
            f"{url} does not say by its name on which images it is, and figures of other images "
            "would be taken for ImageNet's. Nothing was imported. Call it as timm does: "
            "results-imagenet.csv, results-imagenet-real.csv."
        )
    return match[1]


def import_runs(
    wanted: Iterable[ExternalResult], tracking_uri: str, experiment: str
) -> tuple[int, int]:
    """Make the runs that are not there yet; return how many were made, and how many were there.

    Raises:
        RunError: the experiment has been deleted.
        MlflowException, OSError: the store cannot be reached or written.
    """
    num_made = num_there = 0
    with open_client(tracking_uri) as client:
        place = experiment_id(client, tracking_uri, experiment)
        known = _known(client, place)
        for one in wanted:
            before = known.get(one.uid)
            if before is not None and before.info.status == "FINISHED":
                num_there += 1
            else:
                _log_result(client, before or _created(client, place, one), one)
                num_made += 1
    return num_made, num_there


def _known(client: MlflowClient, place: str) -> dict[str, Run]:
    """Return the runs that were imported, by what tells them apart."""
    found = search_all(client, [place], f"tags.`{_KIND_TAG}` LIKE '%'")
    return {run.data.tags[UID_TAG]: run for run in found}


def _created(client: MlflowClient, place: str, one: ExternalResult) -> Run:
    when = datetime(one.year, 1, 1, tzinfo=UTC) if one.year else datetime.now(UTC)
    tags = {
        "mlflow.runName": one.name,
        "mlflow.user": user(),
        UID_TAG: one.uid,
        _KIND_TAG: one.kind,
    }
    return client.create_run(place, start_time=int(when.timestamp() * 1000), tags=tags)


def _log_result(client: MlflowClient, run: Run, one: ExternalResult) -> None:
    """Give a run what it is to show, and finish it: what was cut short is filled again."""
    time_ms = run.info.start_time  # so that MLflow knows a repetition
    client.log_batch(
        run.info.run_id,
        metrics=[
            Metric(mlflow_safe_name(k), as_stored(v), time_ms, 0) for k, v in one.metrics.items()
        ],
        tags=[
            RunTag(mlflow_safe_name(k), truncate_json(v, MAX_TAG_CHARACTERS))
            for k, v in one.tags.items()
            if v is not None
        ],
        synchronous=True,
    )
    client.set_terminated(run.info.run_id, "FINISHED", time_ms)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
