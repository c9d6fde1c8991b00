"""The records of many runs, kept in a file beside them: thousands are read in a second.

The file is a cache. A record in it is believed as long as the files that it was read from have the
same sizes and times. It may be removed at any time; where it cannot be written, runs are read anew.
Since the configs of runs are much alike, each is kept as what it has other than the first one.
"""

import gc
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.run.rundir import RunDir, RunError, reading, write_atomic
from orchestrator.tracking.records.record import CRASHED, Record, read_record

_NAME = ".index.jsonl"
_FORMAT = 6
_FEW = 20  # runs that are not worth a large index
_TOLERATED_SHARE = 0.01  # of stale records that a new file is not worth
_ANY = RunDir(Path())
_FILES = tuple(  # that a record is read from
    file.name
    for file in (
        *(_ANY.attempts_file, _ANY.metrics_file, _ANY.outcome_file, _ANY.mlflow_file),
        *(_ANY.config_file, _ANY.identity_file, _ANY.sweep_file, _ANY.evaluations_file),
        _ANY.jobs_file,
    )
)
Stamp = list[list[int] | None]


def load_records(runs: Sequence[RunDir], *, passing_over: bool = False) -> list[Record]:
    """Return the records of runs, in their order.

    Args:
        passing_over: leave out what cannot be read, and say so; otherwise it is an error.

    Raises:
        RunError: there is no run at one of the paths, or its config cannot be read.
    """
    found: dict[RunDir, Record] = {}
    by_place: dict[Path, list[RunDir]] = defaultdict(list)
    for run in runs:
        by_place[run.path.parent].append(run)
    with _gc_frozen():
        for place, some in by_place.items():
            found |= _of_place(place, some, passing_over)
    return [_refresh_status(run, found[run]) for run in runs if run in found]


def all_records(directory: Path) -> list[Record]:
    """Return the records of the runs that lie directly in a directory, the oldest first."""
    found = load_records(find_runs(directory), passing_over=True)
    return sorted(found, key=lambda one: (one.created_s or 0.0, one.id))


def find_runs(directory: Path) -> list[RunDir]:
    """Return the runs that lie directly in a directory, and what may not be looked into.

    Raises:
        RunError: the directory cannot be read.
    """
    with reading(directory):
        if not directory.is_dir():
            return []
        return [run for path in directory.iterdir() if _may_be(run := RunDir(path))]


def _may_be(run: RunDir) -> bool:
    try:
        return run.config_file.exists()
    except OSError:  # it lies in a directory of somebody else; who reads it says so
        return True


@contextmanager
def _gc_frozen() -> Iterator[None]:
    """Keep the garbage collector from looking through what is made here, now and later: it stays.

    With ten thousand runs that is a fifth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def _of_place(place: Path, runs: Sequence[RunDir], passing_over: bool) -> dict[RunDir, Record]:
    index, found, num_read = place / _NAME, dict[RunDir, Record](), 0
    num_bytes = sum(_size(run.metrics_file) for run in runs)
    is_worth_it = len(runs) >= _FEW or num_bytes >= _size(index)
    known = _read(index) if is_worth_it else {}
    for run in runs:
        stamp = _stamp(run)
        # Where a run lies is not in its files: moved, they are as they were.
        known_stamp, record = known.get(run.id, (None, None))
        if record is None or known_stamp != stamp or record.path != str(run.path):
            try:
                known[run.id] = (stamp, read_record(run))
            except RunError as error:
                if not passing_over:
                    raise
                print(f"warning: passed over: {error}", file=sys.stderr)
                continue
            num_read += 1
        found[run] = known[run.id][1]
    if is_worth_it and num_read > _TOLERATED_SHARE * len(found):
        _write(index, known)
    return found


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _refresh_status(run: RunDir, record: Record) -> Record:
    """Tell an attempt that goes on from one that has crashed: only its lock knows."""
    is_alive = run.is_alive if record.status == CRASHED else False
    if is_alive is None:
        told = f"{record.reason}, or it runs: {run.lock_file} cannot be asked here"
        return replace(record, reason=told)
    return replace(record, status="running") if is_alive else record


def _stamp(run: RunDir) -> Stamp:
    """Return the sizes and times of the files that a record is read from."""
    stamp: Stamp = []
    place = str(run.path)
    for name in _FILES:
        try:
            said = os.stat(f"{place}/{name}")  # noqa: PTH116 (paths made by the ten thousand)
            stamp.append([said.st_size, said.st_mtime_ns])
        except OSError:
            stamp.append(None)
    return stamp


def _read(file: Path) -> dict[str, tuple[Stamp, Record]]:
    """Return what the file holds; nothing, if another version of Tahoe has written it."""
    known = {}
    try:
        with file.open() as lines:
            head = json.loads(next(lines))
            if head["format"] != _FORMAT:
                return {}
            for line in lines:
                stamp, values, lacks, other = json.loads(line)
                config = head["config"] | other
                for key in lacks:
                    del config[key]
                record = Record(**values, config=config)
                known[record.id] = (stamp, record)
    except (OSError, StopIteration, ValueError, TypeError, KeyError):
        return {}
    return known


def _write(file: Path, known: dict[str, tuple[Stamp, Record]]) -> None:
    there = {name: kept for name, kept in known.items() if (file.parent / name).exists()}
    first = next((record.config for _, record in there.values()), {})
    lines = [json.dumps({"format": _FORMAT, "config": first})]
    for stamp, record in there.values():
        values = asdict(record)
        config = values.pop("config")
        lacks = [key for key in first if key not in config]
        other = {k: v for k, v in config.items() if k not in first or first[k] != v}
        lines.append(json.dumps([stamp, values, lacks, other]))
    try:
        write_atomic(file, "\n".join(lines) + "\n")
    except OSError as error:
        print(f"warning: the index of {file.parent} is not kept: {error}", file=sys.stderr)
