"""Select runs by directories, sweeps, MLflow ids, and filters on their configs."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orchestrator.redact import redact_urls, truncate_json
from orchestrator.run.rundir import RunError
from orchestrator.run.sweepdir import expand_sweeps
from orchestrator.tracking.records.record import IMPORTED, Record
from orchestrator.tracking.records.record_index import all_records, load_records

_SHORT_KEYS = {"data": "data.name", "protocol": "data.eval_protocol"}
_RECORD_FIELDS = {
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
    """Select runs; without a name, those of the whole directory or store that pass the filters.

    Args:
        words: paths of runs or sweeps, ids of MLflow runs, and filters KEY=VALUE, all of which a
            run must pass. VALUE may have alternatives, separated by commas, and wildcards.
        tracking_uri: MLflow store to read instead of directories.

    Raises:
        RunError: there is no such run, no run has such a key, or no run is left.
    """
    filters = [(match[1], match[2]) for word in words if (match := _match_filter(word))]
    names = [word for word in words if not _match_filter(word)]
    if tracking_uri is not None:
        records = _read_store(names, filters, tracking_uri)
    else:
        records = _read_named(names, runs_dir) if names else all_records(runs_dir)
    records = _distinct(records)
    selected = [
        record for record in records if all(_passes(record, key, value) for key, value in filters)
    ]
    if not selected:
        for key, _ in filters:
            _check_key(key, records)
        place = str(runs_dir) if tracking_uri is None else redact_urls(tracking_uri)
        raise RunError(
            f"no run in {place} matches '{' '.join(words)}'; {len(records)} were read",
            value=words,
            hint="`tahoe list` shows them; --runs-dir DIR and --from-mlflow URI look elsewhere.",
        )
    return selected


def all_runs(runs_dir: Path, tracking_uri: str | None = None) -> list[Record]:
    """Read all runs of a directory, or of an MLflow store."""
    store = None if tracking_uri is None else _read_store([], [], tracking_uri)
    return _distinct(all_records(runs_dir) if store is None else store)


def curve_reader(tracking_uri: str | None) -> Callable[[Record, str], dict[int, float]]:
    """Return a function that reads a metric's values by step, from the store of the runs."""
    if tracking_uri is None:
        from orchestrator.tracking.reports.curves import logged

        return logged
    from orchestrator.tracking.mlflow_store.mlflow_records import metric_history

    return metric_history(tracking_uri)


def _distinct(records: Sequence[Record]) -> list[Record]:
    """Drop duplicates: a link to a run is that run, and so is a copy that went no further."""
    by_path, by_progress = dict[str, Record](), dict[tuple[Any, ...], Record]()
    for record in records:
        path = record.path if record.status == IMPORTED else os.path.realpath(record.path)
        by_path.setdefault(path, record)
    for record in by_path.values():
        progress = (record.uid or record.path, record.num_attempts, record.step)
        by_progress.setdefault(progress, record)
    return [*by_progress.values()]


def record_value(record: Record, key: str) -> str | None:
    """Format the value of a config key or of the run's status; None if it has none."""
    if key in _RECORD_FIELDS:
        return str(getattr(record, _RECORD_FIELDS[key]))
    value = record.config.get(_SHORT_KEYS.get(key, key))
    return None if value is None else truncate_json(value, 1000)


def _match_filter(word: str) -> re.Match[str] | None:
    return None if Path(word).exists() else _FILTER.fullmatch(word)


def _read_named(names: Iterable[str], runs_dir: Path) -> list[Record]:
    by_path: dict[str, Record] = {}
    for name in names:
        if _MLFLOW_ID.fullmatch(name) and not Path(name).exists():
            records = [record for record in all_runs(runs_dir) if record.mlflow_id == name]
            if not records:
                raise RunError(
                    f"no run in {runs_dir} has the MLflow run {name}",
                    value=name,
                    hint="Give its directory (MLflow's tag tahoe.run_dir), --runs-dir DIR, or "
                    "--from-mlflow URI.",
                )
        else:
            records = load_records(expand_sweeps([Path(name)]))
        by_path |= {record.path: record for record in records}
    return [*by_path.values()]


def _read_store(
    ids: Sequence[str], filters: Sequence[tuple[str, str]], tracking_uri: str
) -> list[Record]:
    """Read the runs of a store, which applies the filters that it can."""
    from orchestrator.tracking.mlflow_store.mlflow_records import records_from_mlflow

    for run_id in ids:
        if not _MLFLOW_ID.fullmatch(run_id):
            raise RunError(
                f"{run_id} is not the id of an MLflow run",
                value=run_id,
                hint="With --from-mlflow, select runs by their MLflow ids and by filters; without "
                "it, by their directories.",
            )
    tags = [
        (key, value) for key, value in filters if key in _SHORT_KEYS and _PLAIN.fullmatch(value)
    ]
    return records_from_mlflow(tracking_uri, ids=ids, tags=tags)


def _passes(record: Record, key: str, pattern: str) -> bool:
    if key == "model":  # by the config's name, with or without its library, or by the paper's title
        name = str(record.config.get("model.name"))
        values: list[Any] = [name, name.rpartition("/")[2], record.model_title]
    else:
        values = [record_value(record, key)]
    return any(
        value is not None and _matches(value, alternative)
        for value in values
        for alternative in pattern.split(",")
    )


def _matches(value: str, pattern: str) -> bool:
    """Check whether a value fits a pattern, or is the same number in another form: 90.0 and 90."""
    try:
        return fnmatchcase(value, pattern) or float(value) == float(pattern)
    except ValueError:
        return False


def _check_key(key: str, records: Sequence[Record]) -> None:
    known = {"model", *_RECORD_FIELDS, *_SHORT_KEYS, *(k for run in records for k in run.config)}
    if key not in known and records:
        near = difflib.get_close_matches(key, known, n=3) or ["model", "data", "seed"]
        raise RunError(f"no run has the key {key}", value=key, hint=f"Near: {', '.join(near)}.")
