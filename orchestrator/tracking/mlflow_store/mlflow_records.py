"""Store records in MLflow, and read them back, wherever their run directories are.

A record is one JSON document in the tag RECORD_TAG, or in the artifact RECORD_FILE where it is too
long for a tag. Params, metrics and the tags of changed params, which MLflow has anyway, are not
repeated in it. Importing this module imports MLflow, which takes about two seconds.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from orchestrator.redact import mlflow_safe_name, one_line_error, redact, redact_urls
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import (
    open_read_only,
    print_to_stderr,
    search_all,
    tag_equals,
)
from orchestrator.tracking.records.record import Record, num_images

RECORD_TAG = "tahoe.record"
RECORD_FILE = "record.json"
CHANGED_TAG = "tahoe.changed."  # and the name of a param: its present value
_NOT_TRAINING = ("system/", "published/", "eval/")  # metrics that training did not log
_FIELDS = {field.name for field in fields(Record)} - {"metrics", "mlflow_id"}


def encode_record(record: Record, params: Collection[str] = ()) -> str:
    """Encode a record, without secrets.

    Args:
        params: names of MLflow params, which hold the values of these keys of the config.
    """
    values = {key: value for key, value in asdict(record).items() if key in _FIELDS}
    values["config"] = {
        key: value for key, value in record.config.items() if mlflow_safe_name(key) not in params
    }
    return json.dumps(redact(values), default=str)


def records_from_mlflow(
    tracking_uri: str, *, ids: Sequence[str] = (), tags: Sequence[tuple[str, str]] = ()
) -> list[Record]:
    """Read the runs of all experiments of a store, the oldest first.

    Args:
        ids: ids of MLflow runs; no other runs are read.
        tags: required tags, without their prefix `tahoe.`.

    Raises:
        RunError: the store cannot be read, or has no run of an id.
    """
    try:
        client = open_read_only(tracking_uri)
        runs = [client.get_run(run_id) for run_id in ids] if ids else _search(client, tags)
        records = [record for run in runs if (record := _record(client, run))]
    except (MlflowException, OSError) as error:
        uri = redact_urls(tracking_uri)
        raise RunError(
            f"no runs were read from {uri}: {one_line_error(error)}", value=uri
        ) from error
    return sorted(records, key=lambda record: (record.created_s or 0.0, record.id))


def metric_history(tracking_uri: str) -> Callable[[Record, str], dict[int, float]]:
    """Return a function that reads the finite values of a metric of a stored run, by step."""
    client = open_read_only(tracking_uri)

    def curve(record: Record, name: str) -> dict[int, float]:
        points = client.get_metric_history(str(record.mlflow_id), name)
        values = {point.step: _metric_value(point.value) for point in points}
        return {step: value for step, value in values.items() if math.isfinite(value)}

    return curve


def _search(client: MlflowClient, tags: Sequence[tuple[str, str]]) -> Iterator[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    conditions = [tag_equals(f"tahoe.{key}", value) for key, value in tags]
    return search_all(client, experiments, " and ".join(conditions))


def _record(client: MlflowClient, run: Run) -> Record | None:
    """Decode a record, and update it with the metrics that were logged since it was stored."""
    document = _document(client, run)
    if document is None:
        return None
    steps = {
        metric.key: metric.step
        for metric in run.data._metric_objs  # the values alone are public
        if not metric.key.startswith(_NOT_TRAINING)
    }
    metrics = {key: _metric_value(run.data.metrics[key]) for key in steps}
    values = {key: value for key, value in document.items() if key in _FIELDS}
    config = {**values["config"], **_params(run)}
    step = max(steps.values(), default=None)
    if values["status"] == "running":
        values["images_per_s"] = metrics.get("perf/images_per_s")
    values |= {
        "config": config,
        "mlflow_id": run.info.run_id,
        "last_step": steps.get("train/loss", step),
        "step": step,
        "num_images": num_images(config, step),
        "metrics": metrics,
        "petaflop": metrics.get("perf/total_pflop"),
    }
    return Record(**values)


def _document(client: MlflowClient, run: Run) -> dict[str, Any] | None:
    """Read the document of a run; None for runs that are not Tahoe's, and if it is missing."""
    text = run.data.tags.get(RECORD_TAG)
    if text is None:
        return None
    if not text.endswith("}"):  # empty, or cut by the server
        try:
            with tempfile.TemporaryDirectory() as directory:
                file = client.download_artifacts(run.info.run_id, RECORD_FILE, directory)
                text = Path(file).read_text()
        except (MlflowException, OSError) as error:
            print_to_stderr(
                f"warning: skipped: the record of {run.info.run_name} is not in MLflow until "
                f"`tahoe sync`: {one_line_error(error)}"
            )
            return None
    document: dict[str, Any] = json.loads(text)
    return document


def _params(run: Run) -> dict[str, Any]:
    """Return the latest values of the params: tags hold those that have changed."""
    changed = {
        key.removeprefix(CHANGED_TAG): value
        for key, value in run.data.tags.items()
        if key.startswith(CHANGED_TAG)
    }
    return {key: _param_value(text) for key, text in (run.data.params | changed).items()}


def _param_value(text: str) -> Any:
    """Decode a param; the inverse of `redact.truncate_json`, but for strings that are JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _metric_value(value: float) -> float:
    """Return a value, NaN for the number that MLflow stores in place of an infinity."""
    return math.nan if abs(value) >= sys.float_info.max else value
