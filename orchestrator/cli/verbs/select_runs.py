"""Which runs are meant: by directories, sweeps, MLflow ids, and by what their configs say."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orchestrator.redact import redact_urls, truncate_json
from orchestrator.run.rundir import RunError
from orchestrator.run.sweepdir import expand_sweeps
from orchestrator.tracking.records.record import IMPORTED, Record
from orchestrator.tracking.records.record_index import all_records, load_records

_SHORT = {"data": "data.name", "protocol": "data.eval_protocol"}
_FACTS = {
    "status": "status",
    "id": "id",
    "system": "model_title",
    "fingerprint": "data_fingerprint",
}
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
_PLAIN = re.compile(r"[^,*?\[]+")  # one alternative, without wildcards
_FILTER = re.compile(r"([A-Za-z_][\w.]*)=(.*)")


def select_runs(
    words: Sequence[str], runs_dir: Path, tracking_uri: str | None = None
) -> list[Record]:
    """Return the runs that some words mean; all of a place where only filters are given.

    A word is a path of a run or a sweep, the id of an MLflow run, or a filter KEY=VALUE, where
    VALUE may have several alternatives, parted by commas, and wildcards. A run must pass all
    filters.

    Args:
        tracking_uri: of the MLflow store that is asked, and no directory is.

    Raises:
        RunError: there is no such run, no run has such a key, or no run is left.
    """
    filters = [(match[1], match[2]) for word in words if (match := _is_filter(word))]
    named = [word for word in words if not _is_filter(word)]
    if tracking_uri is not None:
        found = _stored(named, filters, tracking_uri)
    else:
        found = _named(named, runs_dir) if named else all_records(runs_dir)
    found = _distinct(found)
    kept = [one for one in found if all(_passes(one, key, value) for key, value in filters)]
    if not kept:
        for key, _ in filters:
            _check_key(key, found)
        raise RunError(
            f"no run in {_place(runs_dir, tracking_uri)} is meant by '{' '.join(words)}'; "
            f"{len(found)} were looked at. `tahoe list` shows them; --runs DIR and --from-mlflow "
            "URI look elsewhere."
        )
    return kept


def all_runs(runs_dir: Path, tracking_uri: str | None = None) -> list[Record]:
    """Return all runs of a directory, or of an MLflow store."""
    found = all_records(runs_dir) if tracking_uri is None else _stored([], [], tracking_uri)
    return _distinct(found)


def _distinct(found: Sequence[Record]) -> list[Record]:
    """Return runs once each: a link to a run is that run, and so is a copy that went no further."""
    places, runs = dict[str, Record](), dict[tuple[Any, ...], Record]()
    for one in found:
        places.setdefault(os.path.realpath(one.path) if one.status != IMPORTED else one.path, one)
    for one in places.values():
        runs.setdefault((one.uid or one.path, one.num_attempts, one.step), one)
    return list(runs.values())


def record_value(record: Record, key: str) -> str | None:
    """Return what a run's config says of a key, or how it stands, as text; None: nothing."""
    if key in _FACTS:
        return str(getattr(record, _FACTS[key]))
    value = record.config.get(_SHORT.get(key, key))
    return None if value is None else truncate_json(value, 1000)


def _is_filter(word: str) -> re.Match[str] | None:
    return None if Path(word).exists() else _FILTER.fullmatch(word)


def _named(words: Iterable[str], runs_dir: Path) -> list[Record]:
    found: dict[str, Record] = {}
    for word in words:
        if _MLFLOW_ID.fullmatch(word) and not Path(word).exists():
            here = [one for one in all_records(runs_dir) if one.mlflow_id == word]
            if not here:
                raise RunError(
                    f"no run in {runs_dir} is shown by the MLflow run {word}. Give its directory "
                    "(MLflow's tag tahoe.run_dir), --runs DIR where it lies, or --from-mlflow URI."
                )
        else:
            here = load_records(expand_sweeps([Path(word)]))
        found |= {one.path: one for one in here}
    return list(found.values())


def _stored(
    names: Sequence[str], filters: Sequence[tuple[str, str]], tracking_uri: str
) -> list[Record]:
    """Return the runs of a store, of which it leaves out itself what it can."""
    from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow

    for name in names:
        if not _MLFLOW_ID.fullmatch(name):
            raise RunError(
                f"{name} is no id of an MLflow run. With --from-mlflow runs are meant by their "
                "MLflow ids and by filters; without it, by their directories."
            )
    tags = [(key, value) for key, value in filters if key in _SHORT and _PLAIN.fullmatch(value)]
    return records_from_mlflow(tracking_uri, ids=names, tags=tags)


def _place(runs_dir: Path, tracking_uri: str | None) -> str:
    return str(runs_dir) if tracking_uri is None else redact_urls(tracking_uri)


def _passes(record: Record, key: str, wanted: str) -> bool:
    alternatives = wanted.split(",")
    if key == "model":  # by the config's name, with or without its library, or by the paper's title
        name = str(record.config.get("model.name"))
        said: list[Any] = [name, name.rpartition("/")[2], record.model_title]
    else:
        said = [record_value(record, key)]
    return any(value is not None and _matches(value, w) for value in said for w in alternatives)


def _matches(value: str, wanted: str) -> bool:
    """Whether a value fits a pattern, or is the same number in other words: 90.0 and 90."""
    try:
        return fnmatchcase(value, wanted) or float(value) == float(wanted)
    except ValueError:
        return False


def _check_key(key: str, found: Sequence[Record]) -> None:
    known = {"model", *_FACTS, *_SHORT, *(k for one in found for k in one.config)}
    if key not in known and found:
        near = difflib.get_close_matches(key, known, n=3) or ["model", "data", "seed"]
        raise RunError(f"no run has the key {key}. Near: {', '.join(near)}.")
