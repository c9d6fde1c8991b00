"""Import published results as MLflow runs, beside which its pages show one's own.

Each is a finished run with its results twice: as `published/...`, and as the metrics that one's own
runs log, `val/top1` and `val/top5`, so that one chart shows both. Repeated imports add nothing.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from orchestrator.tracking.mlflow_store.mlflow_records import RECORD_TAG, encode_record
from orchestrator.tracking.mlflow_store.run_metadata import MAX_TAG_CHARACTERS, is_number, user
from orchestrator.tracking.records.catalog import CatalogEntry
from orchestrator.tracking.records.record import IMPORTED, Record

_UID_TAG = "tahoe.uid"
_SOURCE_TAG = "tahoe.imported"
_TIMM_COLUMNS = {"model", "img_size", "top1", "top5", "param_count", "crop_pct", "interpolation"}


@dataclass(frozen=True)
class ExternalResult:
    """A run to be created.

    Args:
        uid: the key by which an existing run is found.
        source: the collection that the result is from.
        published: the results and their sources; see orchestrator.config.schema.Published.
    """

    uid: str
    source: str
    name: str
    model: str
    data: str | None
    protocol: str | None
    metrics: Mapping[str, float]
    published: Mapping[str, Any]
    tags: Mapping[str, Any] = field(default_factory=dict)


def published_results(entries: Iterable[CatalogEntry]) -> Iterator[ExternalResult]:
    """Yield the results of the papers in the catalogue."""
    for entry in entries:
        published = entry.published
        numbers = {k: float(v) for k, v in published.items() if is_number(v) and k != "year"}
        metrics = {f"published/{key}": value for key, value in numbers.items()}
        for top in ("top1", "top5"):
            if f"{top}_err" in numbers:
                metrics[f"val/{top}"] = 100 - numbers[f"{top}_err"]
        texts = ("title", "venue", "hardware", "training_time", "source", "verified")
        yield ExternalResult(
            uid=f"published:{entry.name}",
            source="published",
            name=f"{published['title']}, as published",
            model=entry.model["name"],
            data=published["dataset"],
            protocol=published["protocol"],
            metrics=metrics,
            published=published,
            tags={f"published/{key}": published[key] for key in texts},
        )


def timm_results(url: str) -> Iterator[ExternalResult]:
    """Yield the rows of a results file of timm, such as results-imagenet.csv in its repository.

    Raises:
        RunError: it cannot be read, or is not such a file.
    """
    try:
        text = filesystem.read_bytes(url).decode()
    except (OSError, ValueError) as error:  # not text, or an unknown kind of URL
        raise RunError(
            f"{url} cannot be read, so nothing was imported: {error}", value=url
        ) from error
    rows = csv.DictReader(io.StringIO(text))
    missing = sorted(_TIMM_COLUMNS - {*(rows.fieldnames or ())})
    if missing:
        raise RunError(
            f"{url} is not a results file of timm, as it has no {', '.join(missing)}: nothing was "
            "imported",
            value=missing,
            hint="They are github.com/huggingface/pytorch-image-models, results/*.csv.",
        )
    data = _data_name(url)
    for number, row in enumerate(rows, start=2):
        try:
            yield _timm_result(row, data, url)
        except (AttributeError, TypeError, ValueError) as error:
            raise RunError(
                f"{url}, line {number}: a cell is empty or not a number ({error}). The lines "
                "before it are imported",
                value=number,
                hint="Correct it, and run the same command.",
            ) from error


def _timm_result(row: Mapping[str, str], data: str, url: str) -> ExternalResult:
    size, crop_fraction = int(row["img_size"]), float(row["crop_pct"])
    suffix = "" if data == "imagenet" else f" on {data}"
    return ExternalResult(
        uid=f"timm:{row['model']}@{size}{suffix}",
        source="timm",
        name=f"{row['model']} at {size}{suffix}, by timm",
        model=f"timm/{row['model']}",
        data=data,
        protocol=f"center-{size}-of-{int(size / crop_fraction)}",
        metrics={
            "val/top1": float(row["top1"]),
            "val/top5": float(row["top5"]),
            "model/num_params": 1e6 * float(row["param_count"].replace(",", "")),
        },
        published={"source": url},
        tags={"interpolation": row["interpolation"], "published/source": url},
    )


def _data_name(url: str) -> str:
    """Parse the data set's name from that of a file: results-imagenet-real.csv -> imagenet-real."""
    match = re.search(r"(?:^|/)results-([^/]+)\.csv$", url)
    if match is None:
        raise RunError(
            f"the name of {url} does not name the images, and the results might be taken for "
            "ImageNet's: nothing was imported",
            value=url,
            hint="Name it as timm does: results-imagenet.csv, results-imagenet-real.csv.",
        )
    return match[1]


def import_runs(
    results: Iterable[ExternalResult], tracking_uri: str, experiment: str
) -> tuple[int, int]:
    """Create the runs that do not exist yet; return the numbers of new and of existing runs.

    Raises:
        RunError: the experiment has been deleted.
        MlflowException, OSError: the store cannot be reached or written.
    """
    num_new = num_existing = 0
    with open_client(tracking_uri) as client:
        experiment = experiment_id(client, tracking_uri, experiment)
        imported = search_all(client, [experiment], f"tags.`{_SOURCE_TAG}` LIKE '%'")
        runs = {run.data.tags[_UID_TAG]: run for run in imported}
        for result in results:
            run = runs.get(result.uid)
            if run is not None and run.info.status == "FINISHED":
                num_existing += 1
            else:
                _log_result(client, run or _create_run(client, experiment, result), result)
                num_new += 1
    return num_new, num_existing


def _create_run(client: MlflowClient, experiment: str, result: ExternalResult) -> Run:
    year = result.published.get("year")
    start = datetime(year, 1, 1, tzinfo=UTC) if year else datetime.now(UTC)
    tags = {
        "mlflow.runName": result.name,
        "mlflow.user": user(),
        _UID_TAG: result.uid,
        _SOURCE_TAG: result.source,
    }
    return client.create_run(experiment, start_time=int(start.timestamp() * 1000), tags=tags)


def _log_result(client: MlflowClient, run: Run, result: ExternalResult) -> None:
    """Fill a run and finish it, also one whose import was interrupted."""
    time_ms = run.info.start_time  # so that MLflow recognises a repetition
    facts = {"model": result.model, "data": result.data, "protocol": result.protocol}
    record = Record(
        id=result.name,
        path=f"mlflow:{run.info.run_id}",
        uid=result.uid,
        created_s=time_ms / 1000,
        config={
            "model.name": result.model,
            "data.name": result.data,
            "data.eval_protocol": result.protocol,
        },
        published=dict(result.published),
        status=IMPORTED,
        reason=f"as {result.source} has it",
    )
    tags = {f"tahoe.{key}": value for key, value in facts.items()} | {
        "tahoe.year": result.published.get("year"),
        RECORD_TAG: encode_record(record),
        **result.tags,
    }
    client.log_batch(
        run.info.run_id,
        metrics=[
            Metric(mlflow_safe_name(key), as_stored(value), time_ms, 0)
            for key, value in result.metrics.items()
        ],
        tags=[
            RunTag(mlflow_safe_name(key), truncate_json(value, MAX_TAG_CHARACTERS))
            for key, value in tags.items()
            if value is not None
        ],
        synchronous=True,
    )
    client.set_terminated(run.info.run_id, "FINISHED", time_ms)
