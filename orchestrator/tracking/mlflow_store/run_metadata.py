"""What a run says of itself to a tracking server: params, tags, the figures its paper published."""

import getpass
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator.config.parse import flatten
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
from orchestrator.tracking.records.record import EXTENDED, Record, weights_of

# MLflow's limits, by which it cuts without a sign (mlflow/utils/validation.py). Tags may have 8000
# characters since MLflow 3; a list that must be read back keeps to what servers before it take.
MAX_PARAM_CHARACTERS = 6000
MAX_TAG_CHARACTERS = 5000
MAX_DIGEST_CHARACTERS = 36


def run_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the config flattened with dots, without secrets and what it says of others."""
    flat = flatten(redact(of_the_run(config)))
    return {
        mlflow_safe_name(key): truncate_json(value, MAX_PARAM_CHARACTERS)
        for key, value in flat.items()
    }


def published(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that the paper of the model published, named `published/...`."""
    return {
        mlflow_safe_name(f"published/{key}"): value
        for key, value in _published(config).items()
        if key != "year" and _is_number(value)
    }


def identity_tag(run: RunDir) -> tuple[str, str]:
    """Return the tag by which the MLflow run of a run directory is found again."""
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    return ("tahoe.uid", str(uid)) if uid else ("tahoe.run_dir", _path(run))


def creation_tags(run: RunDir) -> dict[str, str]:
    """Return the tags that an MLflow run is made with, and keeps."""
    key, value = identity_tag(run)
    return {"mlflow.runName": run.id, "mlflow.user": user(), "tahoe.run_id": run.id, key: value}


def run_tags(run: RunDir, config: Mapping[str, Any]) -> dict[str, str]:
    """Return what one filters runs by; what is not known is left out."""
    identity = run.read_json(run.identity_file) or {}
    git, data = _section(identity, "git"), _section(config, "data")
    latest = read_attempts(run).get(run.num_attempts, {})
    said = {key: value for key, value in _published(config).items() if not _is_number(value)}
    found = {
        "tahoe.run_dir": _path(run),
        "model": _section(config, "model").get("name"),
        "year": _published(config).get("year"),
        "data": data.get("name"),
        "protocol": data.get("eval_protocol"),
        "seed": config.get("seed"),
        "weights": weights_of(_section(config, "recipe").get("ema_decay", "?")),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
        "mlflow.source.git.commit": git.get("commit"),
        "attempts": run.num_attempts,
        **{key: latest.get(key) for key in ("world_size", "host", "slurm_job_id", "nodes")},
        **{mlflow_safe_name(f"published/{key}"): value for key, value in said.items()},
        **_init_from_tags(identity),
        "tahoe.ensembles": _ensembles(run),
    }
    known = {key: value for key, value in found.items() if value is not None}
    return {key: truncate_json(value, MAX_TAG_CHARACTERS) for key, value in redact(known).items()}


def attempt_tags(run: RunDir) -> dict[str, str]:
    """Return a tag for each attempt: when, on what, and why it ended, as far as that is known."""
    known, end = read_attempts(run), read_run_state(run)
    found = {}
    for number, line in known.items():
        why = line.get("why") or (end.reason if number == end.attempt else None)
        if why is None and "exit_code" in line:
            why = f"exit code {line['exit_code']}"
        place = line.get("nodes") or line.get("host")
        size = line.get("world_size")
        ranks = f"{pluralize(size, 'rank') if size else 'ranks'} on {place}"
        began = datetime.fromtimestamp(line.get("started_s", 0), UTC).isoformat(" ", "seconds")
        text = redact_urls(f"{began}, {ranks}: {why or 'no end is known'}")
        found[f"tahoe.attempt.{number:04d}"] = truncate_json(text, MAX_TAG_CHARACTERS)
    return found


def time_tags(record: Record) -> dict[str, str]:
    """Return how long all attempts together took, and whether one of them moved the end."""
    taken = {
        "tahoe.training_s": record.training_s,
        "tahoe.device_s": record.device_s,
        "tahoe.images_per_s": record.images_per_s,
    }
    known = {key: f"{value:.6g}" for key, value in taken.items() if value is not None}
    told = record.config.get(EXTENDED)
    return known | ({f"tahoe.{EXTENDED}": told} if told else {})


def description(record: Record) -> str:
    """Return what a run is and what it came to, in one line."""
    year = record.published.get("year")
    config, figures = record.config, record.metrics
    what = f"{record.model_title}{f' ({year})' if year else ''} on {config.get('data.name')}"
    told = [quote_metric(name, figures[name]) for name in RANKED_BY if name in figures]
    if record.step:
        told.append(f"{pluralize(record.step, 'step')} in {format_duration(record.training_s)}")
    if record.images_per_s:
        told.append(f"{format_metric('images_per_s', record.images_per_s)} images/s")
    came_to = "; ".join(filter(None, [", ".join(told), f"seed {config.get('seed')}"]))
    return redact_urls(f"{what}, {config.get('data.eval_protocol')}: {came_to}")


def dataset(run: RunDir, config: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the data set as MLflow describes one; None where it has no fingerprint."""
    data = _section(run.read_json(run.identity_file) or {}, "data")
    if "fingerprint" not in data:
        return None
    url = redact_urls(str(_section(config, "data").get("url")))
    return {
        "name": str(data.get("name")),
        "digest": str(data["fingerprint"])[:MAX_DIGEST_CHARACTERS],
        "source_type": "local" if "://" not in url else url.partition("://")[0],
        "source": json.dumps({"uri": url}),
        "profile": json.dumps({k: v for k, v in data.items() if k.startswith("num_")}),
    }


def environment(run: RunDir) -> dict[str, Any]:
    """Return Python and the packages that matter: those of the run's making, and any later ones."""
    identity = run.read_json(run.identity_file) or {}
    kept = ("python", "packages", "continued_with")
    return {key: identity[key] for key in kept if key in identity}


def evaluations(run: RunDir) -> list[Point]:
    """Return what `tahoe evaluate` has found, as points `eval/PROTOCOL/FIGURE`.

    Of the weights that the run was judged with; those of its raw ones are `eval/raw/...`. On other
    data they are `eval/DATA-FINGERPRINT/...`.

    Of an evaluation that was made again the latest figures count. Where they are the same it is
    the same point, however often it was made.
    """
    config, data = run.read_config(), _section(run.read_json(run.identity_file) or {}, "data")
    own = split_fingerprints(str(data.get("fingerprint", "")))
    own_url = _section(config, "data").get("url")
    is_averaged = _section(config, "recipe").get("ema_decay") is not None
    found: dict[tuple[str, int], Point] = {}
    for line in read_json_lines(run.evaluations_file):
        if "time_ms" not in line:  # from before it was noted
            continue
        raw = "raw/" if is_averaged and line.get("weights") == "raw" else ""
        is_own = line["data"] == own_url
        if "fingerprint" in line and line["split"] in own:
            is_own = line["fingerprint"].startswith(own[line["split"]])
        on = "" if is_own else f"{_data_name(line)}/"
        split = "" if line["split"] == "val" else f"{line['split']}/"
        for name in RESULTS:
            if line.get(name) is not None:
                key = mlflow_safe_name(f"eval/{raw}{on}{split}{line['protocol']}/{name}")
                point = Point(key, line[name], line["step"], line["time_ms"])
                if (known := found.get((key, point.step))) is None or known.value != point.value:
                    found[key, point.step] = point
    return list(found.values())


def _data_name(line: Mapping[str, Any]) -> str:
    """Return what data is called that a run was judged on: sets of one name differ in the bytes."""
    name = redact_urls(line["data"]).partition("?")[0].rstrip("/").rpartition("/")[2]
    return f"{name}-{line['fingerprint'][:8]}" if "fingerprint" in line else str(name)


def _init_from_tags(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return whose weights a run began with."""
    said = _section(identity, "init_from")
    return {
        f"init_from.{key}": said[key] for key in ("source", "run", "uid", "step") if said.get(key)
    }


def _ensembles(run: RunDir) -> list[list[str]] | None:
    """Return the runs of each ensemble that this one was judged in, as many as a tag can hold."""
    judged = (line.get("ensemble") or {} for line in read_json_lines(run.evaluations_file))
    found = [list(names) for names in dict.fromkeys(tuple(x["runs"]) for x in judged if x)]
    while len(json.dumps(found)) > MAX_TAG_CHARACTERS:  # cut, it could not be read back
        del found[0]
    return found or None


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def _published(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _section(_section(config, "model"), "published")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _path(run: RunDir) -> str:
    return str(run.path.resolve())


def user() -> str:
    """Return who runs this, as MLflow's pages show it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())
