"""Copies of run directories: a copy is a run with its own identity and MLflow run."""

from pathlib import Path
from uuid import uuid4

from orchestrator.run.rundir import RunDir


def original_of(run: RunDir, noted: str | None) -> Path | None:
    """Return the path of the run that this one is a copy of; None if it was moved.

    Args:
        noted: the path of the run according to its MLflow run.
    """
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    if not noted or not uid:
        return None
    other = RunDir(Path(noted))
    if (other.read_json(other.identity_file) or {}).get("uid") != uid or _is_same(run, other):
        return None
    return other.path


def make_own(run: RunDir, original: Path) -> None:
    """Give a copy a new identity, which records its original."""
    identity = run.read_json(run.identity_file) or {}
    copied = {"path": str(original), "uid": identity.get("uid")}
    run.mlflow_file.unlink(missing_ok=True)
    run.write_json(run.identity_file, {**identity, "uid": uuid4().hex, "copied_from": copied})


def _is_same(run: RunDir, other: RunDir) -> bool:
    """Check whether two paths are one directory, perhaps mounted twice."""
    file, other_file = run.identity_file.stat(), other.identity_file.stat()
    return (file.st_ino, file.st_mtime_ns) == (other_file.st_ino, other_file.st_mtime_ns)
