"""Runs as an MLflow store tells of them, wherever their directories are.

Importing this module imports MLflow, which takes about two seconds.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.redact import one_line, one_line_error, redact_urls
from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store.client import (
    MlflowClient,
    MlflowException,
    Run,
    reading,
    search_all,
)
from orchestrator.tracking.records.record import EXTENDED, IMPORTED, Record

_STATES = {"SCHEDULED": "scheduled", "RUNNING": "running", "FINISHED": "finished"}
_NOT_LOGGED = ("system/", "published/", "eval/")  # metrics that training did not log
_ENSEMBLES = "tahoe.ensembles"
_TAGGED = {
    "model": "model.name",  # what was imported has no params
    "data": "data.name",
    "protocol": "data.eval_protocol",
    f"tahoe.{EXTENDED}": EXTENDED,
}


def records_from_mlflow(
    tracking_uri: str, *, ids: Sequence[str] = (), tags: Sequence[tuple[str, str]] = ()
) -> list[Record]:
    """Return the runs of all experiments of a store, the oldest first.

    Args:
        ids: of MLflow runs; nothing else is asked for.
        tags: that a run must have.

    Raises:
        RunError: the store cannot be read, or has no run of an id.
    """
    try:
        client = reading(tracking_uri)
        if ids:
            found = [client.get_run(name) for name in ids]
        else:
            found = [run for run in _search(client, tags) if "tahoe.uid" in run.data.tags]
    except (MlflowException, OSError) as error:
        raise RunError(
            f"no runs were read from {redact_urls(tracking_uri)}: {one_line_error(error)}."
        ) from error
    return sorted(map(_record, found), key=lambda one: (one.created_s or 0.0, one.id))


def metric_history(tracking_uri: str) -> Callable[[Record, str], dict[int, float]]:
    """Return what tells a figure of a run of the store by its steps, where it is finite."""
    client = reading(tracking_uri)

    def curve(record: Record, name: str) -> dict[int, float]:
        points = client.get_metric_history(str(record.mlflow_id), name)
        values = {point.step: _measured(point.value) for point in points}
        return {step: value for step, value in values.items() if math.isfinite(value)}

    return curve


def _search(client: MlflowClient, tags: Sequence[tuple[str, str]]) -> Iterator[Run]:
    places = [one.experiment_id for one in client.search_experiments()]
    wanted = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags)
    return search_all(client, places, wanted)


def _quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def _record(run: Run) -> Record:
    tags, config = run.data.tags, _config(run)
    steps = {
        metric.key: metric.step
        for metric in run.data._metric_objs  # the values alone are public
        if not metric.key.startswith(_NOT_LOGGED)
    }
    metrics = {key: _measured(run.data.metrics[key]) for key in steps}
    step, batch = max(steps.values(), default=None), config.get("recipe.global_batch_size")
    num_images = step * batch if step is not None and batch else None
    state, _, reason = tags.get("tahoe.verdict", "").partition(": ")
    if "tahoe.imported" in tags:
        state, reason = IMPORTED, f"as {tags['tahoe.imported']} has it"
    return Record(
        id=tags.get("tahoe.run_id") or run.info.run_name,
        path=tags.get("tahoe.run_dir") or f"mlflow:{run.info.run_id}",
        uid=tags.get("tahoe.uid"),
        mlflow_id=run.info.run_id,
        created_s=run.info.start_time / 1000,
        config=config,
        published=_published(run),
        data_fingerprint=_digest(run),
        status=state or _STATES.get(run.info.status, "crashed"),
        reason=one_line(reason),
        num_attempts=int(tags.get("attempts", 0)),
        attempt_outcomes=[tags[key] for key in sorted(tags) if key.startswith("tahoe.attempt.")],
        job_ids=[tags["slurm_job_id"]] if "slurm_job_id" in tags else [],
        nodes=tags.get("nodes"),
        num_steps=None,
        last_step=steps.get("train/loss", step),
        step=step,
        num_images=num_images,
        metrics=metrics,
        training_s=_number(tags.get("tahoe.training_s")),
        device_s=_number(tags.get("tahoe.device_s")),
        images_per_s=_number(tags.get("tahoe.images_per_s")) or metrics.get("perf/images_per_s"),
        petaflop=metrics.get("perf/total_pflop"),
        init_from=_origin(tags),
        sweep=None,
        evaluations=[{"ensemble": {"runs": one}} for one in _value(tags.get(_ENSEMBLES, "[]"))],
    )


def _config(run: Run) -> dict[str, Any]:
    """Return the config, as it was last, from params and from the tags of what has changed."""
    tags = run.data.tags
    found = {key: _value(text) for key, text in run.data.params.items()}
    found |= {key: _value(text) for key, text in _section(tags, "tahoe.changed.").items()}
    for tag, key in _TAGGED.items():
        if tag in tags:
            found.setdefault(key, tags[tag])
    return found


def _published(run: Run) -> dict[str, Any]:
    year = run.data.tags.get("year")
    return {
        **_section(run.data.tags, "published/"),
        **_section(run.data.metrics, "published/"),
        **({"year": int(year)} if year else {}),
    }


def _section(mapping: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in mapping.items() if k.startswith(prefix)}


def _origin(tags: dict[str, str]) -> dict[str, Any] | None:
    found: dict[str, Any] = _section(tags, "init_from.")
    return (found | ({"step": int(found["step"])} if "step" in found else {})) or None


def _digest(run: Run) -> str | None:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return str(inputs[0].dataset.digest) if inputs else None


def _value(text: str) -> Any:
    """Return what was sent as this text, or what has the same one; see `redact.truncate_json`."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _measured(value: float) -> float:
    """Return a value, NaN for what MLflow keeps in place of an infinity."""
    return math.nan if abs(value) >= sys.float_info.max else value


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
