"""The params, tags and published results that a run sends to a tracking server."""

import getpass
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator.config.parse import flatten
from orchestrator.config.strategy import INEXACT_HOOKS
from orchestrator.metrics import RANKED_BY, RESULTS
from orchestrator.number_format import format_duration, format_metric, pluralize, quote_metric
from orchestrator.redact import (
    mlflow_safe_name,
    of_the_run,
    redact,
    redact_urls,
    truncate_json,
)
from orchestrator.run.metric_stream import Point
from orchestrator.run.outcome import read_attempts, read_run_state
from orchestrator.run.plan import split_fingerprints
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.tracking.records.record import EXTENDED, Record, evaluated_weights

# MLflow's limits, at which it cuts silently (mlflow/utils/validation.py). Tags may have 8000
# characters since MLflow 3; older servers accept 5000.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 5000
MAX_DIGEST_CHARACTERS = 36


def run_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Flatten the config with dots, without secrets and others' results."""
    flat = flatten(redact(of_the_run(config)))
    return {
        mlflow_safe_name(key): truncate_json(value, MAX_PARAM_CHARACTERS)
        for key, value in flat.items()
    }


def published(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in the paper of the model, named `published/...`."""
    return {
        mlflow_safe_name(f"published/{key}"): value
        for key, value in _published(config).items()
        if key != "year" and is_number(value)
    }


def identity_tag(run: RunDir) -> tuple[str, str]:
    """Return the tag by which the MLflow run of a run directory is found again."""
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    return ("tahoe.uid", str(uid)) if uid else ("tahoe.run_dir", _path(run))


def creation_tags(run: RunDir) -> dict[str, str]:
    """Return the tags that an MLflow run is created with, and keeps."""
    key, value = identity_tag(run)
    return {"mlflow.runName": run.id, "mlflow.user": user(), "tahoe.run_id": run.id, key: value}


def run_tags(run: RunDir, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags to filter runs by; unknown values are left out."""
    info = run.read_json(run.identity_file) or {}
    git, data = _section(info, "git"), _section(config, "data")
    attempt = read_attempts(run).get(run.num_attempts, {})
    origin = _section(info, "init_from")
    tags = {
        "tahoe.run_dir": _path(run),
        "tahoe.model": _section(config, "model").get("name"),
        "tahoe.year": _published(config).get("year"),
        "tahoe.data": data.get("name"),
        "tahoe.mix": _mix(info),
        "tahoe.protocol": data.get("eval_protocol"),
        "tahoe.attempts": run.num_attempts,
        "exact": _exact(config),
        "seed": config.get("seed"),
        "weights": evaluated_weights(_section(config, "recipe").get("ema_decay", "?")),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "mlflow.source.git.commit": git.get("commit"),
        **{key: attempt.get(key) for key in ("world_size", "host", "slurm_job_id", "nodes")},
        **{
            mlflow_safe_name(f"published/{key}"): value
            for key, value in _published(config).items()
            if not is_number(value)
        },
        **{f"init_from.{key}": origin.get(key) for key in ("source", "run", "uid", "step")},
    }
    known = redact({key: value for key, value in tags.items() if value is not None})
    return {key: truncate_json(value, MAX_TAG_CHARACTERS) for key, value in known.items()}


def attempt_tags(run: RunDir) -> dict[str, str]:
    """Return a tag for each attempt: its start, its ranks and nodes, and how it ended."""
    attempts, state = read_attempts(run), read_run_state(run)
    tags = {}
    for number, attempt in attempts.items():
        reason = attempt.get("why") or (state.reason if number == state.attempt else None)
        if reason is None and "exit_code" in attempt:
            reason = f"exit code {attempt['exit_code']}"
        size = attempt.get("world_size")
        ranks = pluralize(size, "rank") if size else "ranks"
        start = datetime.fromtimestamp(attempt.get("started_s", 0), UTC).isoformat(" ", "seconds")
        nodes = attempt.get("nodes") or attempt.get("host")
        text = redact_urls(f"{start}, {ranks} on {nodes}: {reason or 'no end is known'}")
        tags[f"tahoe.attempt.{number:04d}"] = truncate_json(text, MAX_TAG_CHARACTERS)
    return tags


def time_tags(record: Record) -> dict[str, str]:
    """Return the durations and the speed over all attempts, and the extension, if any."""
    numbers = {
        "tahoe.training_s": record.training_s,
        "tahoe.device_seconds": record.device_s,
        "tahoe.images_per_s": record.images_per_s,
    }
    tags = {key: f"{value:.6g}" for key, value in numbers.items() if value is not None}
    if extension := record.config.get(EXTENDED):
        tags[f"tahoe.{EXTENDED}"] = extension
    return tags


def description(record: Record) -> str:
    """Describe a run and its results in one line."""
    year, config, metrics = record.published.get("year"), record.config, record.metrics
    system = f"{record.model_title}{f' ({year})' if year else ''} on {config.get('data.name')}"
    results = [quote_metric(name, metrics[name]) for name in RANKED_BY if name in metrics]
    if record.step:
        results.append(f"{pluralize(record.step, 'step')} in {format_duration(record.training_s)}")
    if record.images_per_s:
        results.append(f"{format_metric('images_per_s', record.images_per_s)} images/s")
    summary = "; ".join(filter(None, [", ".join(results), f"seed {config.get('seed')}"]))
    return redact_urls(f"{system}, {config.get('data.eval_protocol')}: {summary}")


def dataset(run: RunDir, config: Mapping[str, Any]) -> dict[str, str] | None:
    """Describe the data set for MLflow; None where it has no fingerprint."""
    data = _section(run.read_json(run.identity_file) or {}, "data")
    if "fingerprint" not in data:
        return None
    url, mix = redact_urls(_train_place(_section(config, "data"))), data.get("mix")
    return {
        "name": str(data.get("name")),
        "digest": str(data["fingerprint"])[:MAX_DIGEST_CHARACTERS],
        "source_type": "local" if "://" not in url else url.partition("://")[0],
        "source": json.dumps({"uri": url, **({"mix": redact(mix)} if mix else {})}),
        "profile": json.dumps({k: v for k, v in data.items() if k.startswith("num_")}),
    }


def _train_place(data: Mapping[str, Any]) -> str:
    """Return the place of the training samples: URLs or patterns, those of a mixture together."""
    places: list[str] = []
    for source in data.get("mix") or [data]:
        place = source.get("train") or source.get("url")
        places += [place] if isinstance(place, str) else map(str, place or ())
    return ", ".join(places)


def environment(run: RunDir) -> dict[str, Any]:
    """Return the versions of Python and packages at the run's creation, and any later ones."""
    info = run.read_json(run.identity_file) or {}
    return {key: info[key] for key in ("python", "packages", "continued_with") if key in info}


def evaluations(run: RunDir) -> list[Point]:
    """Read the results of `tahoe evaluate` as points `eval/PROTOCOL/METRIC`.

    Results of raw weights are `eval/raw/...` if the run averages its weights; those on other data
    are `eval/DATA-FINGERPRINT/...`. The latest of repeated evaluations counts; one with equal
    results keeps the time of the first.
    """
    config, data = run.read_config(), _section(run.read_json(run.identity_file) or {}, "data")
    own_fingerprints = split_fingerprints(str(data.get("fingerprint", "")))
    own_url = _section(config, "data").get("url")
    is_averaged = _section(config, "recipe").get("ema_decay") is not None
    points: dict[tuple[str, int], Point] = {}
    for line in read_json_lines(run.evaluations_file):
        raw = "raw/" if is_averaged and line.get("weights") == "raw" else ""
        is_own = line["data"] == own_url
        if "fingerprint" in line and line["split"] in own_fingerprints:
            is_own = line["fingerprint"].startswith(own_fingerprints[line["split"]])
        images = "" if is_own else f"{_data_name(line)}/"
        split = "" if line["split"] == "val" else f"{line['split']}/"
        for name in RESULTS:
            if line.get(name) is not None:
                key = mlflow_safe_name(f"eval/{raw}{images}{split}{line['protocol']}/{name}")
                point = Point(key, line[name], line["step"], line["time_ms"])
                previous = points.get((key, point.step))
                if previous is None or previous.value != point.value:
                    points[key, point.step] = point
    return list(points.values())


def _data_name(line: Mapping[str, Any]) -> str:
    """Name the data of an evaluation; a fingerprint distinguishes sets of one name."""
    name = redact_urls(line["data"]).partition("?")[0].rstrip("/").rpartition("/")[2]
    return f"{name}-{line['fingerprint'][:8]}" if "fingerprint" in line else str(name)


def _mix(info: Mapping[str, Any]) -> str | None:
    """Return the images of a step from each data set of a mixture, as text."""
    sources = _section(info, "data").get("mix", ())
    return ", ".join(f"{source['quota']} of {source['name']}" for source in sources) or None


def _exact(config: Mapping[str, Any]) -> str | None:
    """Return "false" if a resumed run has other bits than one that was left alone."""
    return "false" if _section(config, "strategy").get("comm_hook") in INEXACT_HOOKS else None


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _published(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _section(_section(config, "model"), "published")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path(run: RunDir) -> str:
    return str(run.path.resolve())


def user() -> str:
    """Return the user's name for MLflow's pages."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())
