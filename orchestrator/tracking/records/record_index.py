"""Cache the records of many runs in a file beside them: thousands are read in a second.

A cached record is valid as long as the files that it was read from have the same sizes and times.
The cache may be removed at any time; where it cannot be written, runs are read again. As the
configs of runs are much alike, each is stored as its difference from the first one.
"""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data_sharding.io.atomic_file import write_atomic
from orchestrator.gc_frozen import gc_frozen
from orchestrator.run.rundir import RunDir, RunError, reading
from orchestrator.tracking.records.record import CRASHED, Record, read_record

_NAME = ".index.jsonl"
_FORMAT = 7
_FEW = 20  # runs that do not justify reading a large index
_TOLERATED_FRACTION = 0.01  # of outdated records that do not justify writing a new file
_ANY = RunDir(Path())
_SOURCES = tuple(  # the files that a record is read from
    file.name
    for file in (
        *(_ANY.attempts_file, _ANY.metrics_file, _ANY.outcome_file, _ANY.mlflow_file),
        *(_ANY.config_file, _ANY.identity_file, _ANY.sweep_file, _ANY.evaluations_file),
        _ANY.jobs_file,
    )
)
FileStamps = list[list[int] | None]


def load_records(runs: Sequence[RunDir], *, skip_unreadable: bool = False) -> list[Record]:
    """Return the records of runs, in their order.

    Args:
        skip_unreadable: print a warning for runs that cannot be read, and leave them out.
    """
    records: dict[RunDir, Record] = {}
    by_directory: dict[Path, list[RunDir]] = defaultdict(list)
    for run in runs:
        by_directory[run.path.parent].append(run)
    with gc_frozen():
        for directory, members in by_directory.items():
            records |= _load_directory(directory, members, skip_unreadable)
    return [_refresh_status(run, records[run]) for run in runs if run in records]


def all_records(directory: Path) -> list[Record]:
    """Return the records of all runs directly in a directory, the oldest first."""
    records = load_records(find_runs(directory), skip_unreadable=True)
    return sorted(records, key=lambda record: (record.created_s or 0.0, record.id))


def find_runs(directory: Path) -> list[RunDir]:
    """Return the runs directly in a directory, and the paths that may not be examined."""
    with reading(directory):
        if not directory.is_dir():
            return []
        return [run for path in directory.iterdir() if _may_be_run(run := RunDir(path))]


def _may_be_run(run: RunDir) -> bool:
    try:
        return run.config_file.exists()
    except OSError:  # in a directory of another user; reading it raises the proper error
        return True


def _load_directory(
    directory: Path, runs: Sequence[RunDir], skip_unreadable: bool
) -> dict[RunDir, Record]:
    index, records, num_read = directory / _NAME, dict[RunDir, Record](), 0
    num_bytes = sum(_size(run.metrics_file) for run in runs)
    use_index = len(runs) >= _FEW or num_bytes >= _size(index)
    cached = _read(index) if use_index else {}
    for run in runs:
        stamps = _file_stamps(run)
        cached_stamps, record = cached.get(run.id, (None, None))
        # The path of a run is not in its files: they do not change when it is moved.
        if record is None or cached_stamps != stamps or record.path != str(run.path):
            try:
                record = read_record(run)
            except RunError as error:
                if not skip_unreadable:
                    raise
                print(f"warning: skipped: {error}", file=sys.stderr)
                continue
            cached[run.id] = (stamps, record)
            num_read += 1
        records[run] = record
    if use_index and num_read > _TOLERATED_FRACTION * len(records):
        _write(index, cached)
    return records


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _refresh_status(run: RunDir, record: Record) -> Record:
    """Distinguish a running attempt from a crashed one by its lock."""
    is_alive = run.is_alive if record.status == CRASHED else False
    if is_alive is None:
        reason = f"{record.reason}, or it is running: {run.lock_file} cannot be checked here"
        return replace(record, reason=reason)
    return replace(record, status="running") if is_alive else record


def _file_stamps(run: RunDir) -> FileStamps:
    """Return the sizes and times of the files that a record is read from."""
    stamps: FileStamps = []
    directory = str(run.path)
    for name in _SOURCES:
        try:
            stat = os.stat(f"{directory}/{name}")  # noqa: PTH116 (Path is slow for 90,000 files)
            stamps.append([stat.st_size, stat.st_mtime_ns])
        except OSError:
            stamps.append(None)
    return stamps


def _read(file: Path) -> dict[str, tuple[FileStamps, Record]]:
    """Read the cache; it is empty if another version of Tahoe wrote it."""
    cached = {}
    try:
        with file.open() as lines:
            head = json.loads(next(lines))
            if head["format"] != _FORMAT:
                return {}
            for line in lines:
                stamps, values, missing, changed = json.loads(line)
                config = head["config"] | changed
                for key in missing:
                    del config[key]
                record = Record(**values, config=config)
                cached[record.id] = (stamps, record)
    except (OSError, StopIteration, ValueError, TypeError, KeyError):
        return {}
    return cached


def _write(file: Path, cached: dict[str, tuple[FileStamps, Record]]) -> None:
    existing = {name: entry for name, entry in cached.items() if (file.parent / name).exists()}
    first = next((record.config for _, record in existing.values()), {})
    lines = [json.dumps({"format": _FORMAT, "config": first})]
    for stamps, record in existing.values():
        values = asdict(record)
        config = values.pop("config")
        missing = [key for key in first if key not in config]
        changed = {k: v for k, v in config.items() if k not in first or first[k] != v}
        lines.append(json.dumps([stamps, values, missing, changed]))
    try:
        write_atomic(file, "\n".join(lines) + "\n")
    except OSError as error:
        print(f"warning: the index of {file.parent} is not kept: {error}", file=sys.stderr)
