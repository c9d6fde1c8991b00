"""A run directory that was copied: the copy is a run of its own, and so it has an MLflow run."""

from pathlib import Path
from uuid import uuid4

from orchestrator.run.rundir import RunDir


def original_of(run: RunDir, noted: str | None) -> Path | None:
    """Return where the run lies that this one is a copy of; None for one that was moved.

    Args:
        noted: where its MLflow run says that it lies.
    """
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    if not noted or not uid:
        return None
    other = RunDir(Path(noted))
    if (other.read_json(other.identity_file) or {}).get("uid") != uid or _is_same(run, other):
        return None
    return other.path


def make_own(run: RunDir, original: Path) -> None:
    """Give a copy an identity of its own; what it was copied from is noted."""
    identity = run.read_json(run.identity_file) or {}
    copied = {"path": str(original), "uid": identity.get("uid")}
    run.mlflow_file.unlink(missing_ok=True)
    run.write_json(run.identity_file, {**identity, "uid": uuid4().hex, "copied_from": copied})


def _is_same(run: RunDir, other: RunDir) -> bool:
    """Whether two paths are of one directory, though it be mounted twice."""
    one, two = run.identity_file.stat(), other.identity_file.stat()
    return (one.st_ino, one.st_mtime_ns) == (two.st_ino, two.st_mtime_ns)
