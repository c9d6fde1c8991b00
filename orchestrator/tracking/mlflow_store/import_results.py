"""Import published results as MLflow runs, beside which its pages show one's own.

Each is a finished run with its results twice: as `published/...`, and as the metrics that one's own
runs log, `val/top1` and `val/top5`, so that one chart shows both. Repeated imports add nothing.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag

from data_sharding.io import filesystem
from orchestrator.redact import mlflow_safe_name, truncate_json
from orchestrator.run.metric_stream import as_stored
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import experiment_id, open_client, search_all
from orchestrator.tracking.mlflow_store.mlflow_records import RECORD_TAG, encode_record
from orchestrator.tracking.mlflow_store.run_metadata import MAX_TAG_CHARACTERS, is_number, user
from orchestrator.tracking.records.catalog import CatalogEntry
from orchestrator.tracking.records.record import IMPORTED, Record

_UID_TAG = "tahoe.uid"
_SOURCE_TAG = "tahoe.imported"
_TIMM_COLUMNS = {"model", "img_size", "top1", "top5", "param_count", "crop_pct", "interpolation"}


@dataclass(frozen=True)
class ExternalResult:
    """A result to import: `record.uid` is the key by which an existing run is found."""

    record: Record
    source: str
    tags: Mapping[str, Any]


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
        record = Record(
            id=f"{published['title']}, as published",
            path="",
            uid=f"published:{entry.name}",
            config=_config(entry.model["name"], published["dataset"], published["protocol"]),
            published=dict(published),
            status=IMPORTED,
            metrics=metrics,
        )
        tags = {f"published/{key}": published[key] for key in texts}
        yield ExternalResult(record, "published", tags | {"tahoe.year": published["year"]})


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
    model, size, crop_fraction = row["model"], int(row["img_size"]), float(row["crop_pct"])
    suffix = "" if data == "imagenet" else f" on {data}"
    record = Record(
        id=f"{model} at {size}{suffix}, by timm",
        path="",
        uid=f"timm:{model}@{size}{suffix}",
        config=_config(f"timm/{model}", data, f"center-{size}-of-{int(size / crop_fraction)}"),
        published={"source": url},
        status=IMPORTED,
        metrics={
            "val/top1": float(row["top1"]),
            "val/top5": float(row["top5"]),
            "model/num_params": 1e6 * float(row["param_count"].replace(",", "")),
        },
    )
    tags = {"interpolation": row["interpolation"], "published/source": url}
    return ExternalResult(record, "timm", tags)


def _config(model: str, data: str | None, protocol: str | None) -> dict[str, Any]:
    return {"model.name": model, "data.name": data, "data.eval_protocol": protocol}


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
    """Create the runs that do not exist yet; return the numbers of new and of existing runs."""
    num_new = num_existing = 0
    with open_client(tracking_uri) as client:
        experiment = experiment_id(client, tracking_uri, experiment)
        imported = search_all(client, [experiment], f"tags.`{_SOURCE_TAG}` LIKE '%'")
        runs = {run.data.tags[_UID_TAG]: run for run in imported}
        for result in results:
            run = runs.get(str(result.record.uid))
            if run is not None and run.info.status == "FINISHED":
                num_existing += 1
            else:
                _log_result(client, run or _create_run(client, experiment, result), result)
                num_new += 1
    return num_new, num_existing


def _create_run(client: MlflowClient, experiment: str, result: ExternalResult) -> Run:
    year = result.record.published.get("year")
    start = datetime(year, 1, 1, tzinfo=UTC) if year else datetime.now(UTC)
    tags = {
        "mlflow.runName": result.record.id,
        "mlflow.user": user(),
        _UID_TAG: result.record.uid,
        _SOURCE_TAG: result.source,
    }
    return client.create_run(experiment, start_time=int(start.timestamp() * 1000), tags=tags)


def _log_result(client: MlflowClient, run: Run, result: ExternalResult) -> None:
    """Fill a run and finish it, also one whose import was interrupted."""
    time_ms = run.info.start_time  # so that MLflow recognises a repetition
    record = replace(
        result.record,
        path=f"mlflow:{run.info.run_id}",
        created_s=time_ms / 1000,
        reason=f"as {result.source} has it",
    )
    tags = {
        "tahoe.model": record.config["model.name"],
        "tahoe.data": record.config["data.name"],
        "tahoe.protocol": record.config["data.eval_protocol"],
        RECORD_TAG: encode_record(record),
        **result.tags,
    }
    client.log_batch(
        run.info.run_id,
        metrics=[
            Metric(mlflow_safe_name(key), as_stored(value), time_ms, 0)
            for key, value in record.metrics.items()
        ],
        tags=[
            RunTag(mlflow_safe_name(key), truncate_json(value, MAX_TAG_CHARACTERS))
            for key, value in tags.items()
            if value is not None
        ],
        synchronous=True,
    )
    client.set_terminated(run.info.run_id, "FINISHED", time_ms)
