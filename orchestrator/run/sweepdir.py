"""The directory of a sweep: which runs belong together, and how they were submitted.

The runs are whole without it. Each knows its sweep (`RunDir.sweep_file`), so that whoever ships a
run can find the parent of all of them in MLflow.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from data_sharding.io import filesystem
from orchestrator.run.rundir import RunDir, append_json_line, read_json_lines

RESULTS = "optimization_results.yaml"  # as Hydra's sweepers that search call it


@dataclass(frozen=True)
class SweepDir:
    """The paths of one sweep."""

    path: Path

    @classmethod
    def of(cls, runs_dir: Path, runs: Sequence[RunDir]) -> "SweepDir":
        """Return the sweep that begins with these runs: the same for the same runs."""
        listed = "\0".join(sorted(str(run.path) for run in runs))
        digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
        return cls(runs_dir / "sweeps" / f"sweep-{digest}")

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def uid_file(self) -> Path:
        """What tells the sweep from others at an equal path: of another user, or deleted since."""
        return self.path / "uid"

    @property
    def uid(self) -> str:
        """A name that no other sweep has; one from before there was a file of it has its id."""
        return self.uid_file.read_text() if self.uid_file.exists() else self.id

    @property
    def runs_file(self) -> Path:
        """One JSON line for each run that was added."""
        return self.path / "runs.jsonl"

    @property
    def lock_file(self) -> Path:
        """Held by whoever makes the parent of the runs in MLflow."""
        return self.path / "lock"

    @property
    def mlflow_file(self) -> Path:
        """The MLflow run that shows the sweep, as it was last found; nothing depends on it."""
        return self.path / "mlflow.json"

    @property
    def results_file(self) -> Path:
        """What a sweeper that searches has found, as it wrote it."""
        return self.path / RESULTS

    def array_script(self, number: int) -> Path:
        """What was given to Slurm."""
        return self.path / f"array-{number}.sbatch"

    def array_runs(self, number: int) -> Path:
        """The run directories of an array, a line each."""
        return self.path / f"array-{number}.txt"

    def new_array(self) -> int:
        """Return a number that no array of this sweep has."""
        number = 1
        while self.array_script(number).exists():
            number += 1
        return number

    def runs(self) -> list[RunDir]:
        """Return the runs of the sweep, in the order in which they were added."""
        return [*self.points()]

    def overrides(self) -> list[list[str]]:
        """Return the overrides of the runs."""
        return [line["overrides"] for line in read_json_lines(self.runs_file)]

    def points(self) -> dict[RunDir, list[str]]:
        """Return the runs with their overrides."""
        lines = read_json_lines(self.runs_file)
        beside = self.path.parent.parent
        return {
            RunDir(_followed(self.path, line["run"], beside)): line["overrides"] for line in lines
        }

    def add(self, points: Iterable[tuple[RunDir, Sequence[str]]]) -> None:
        """Make runs, with the overrides that led to them, part of the sweep."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.runs_file.exists():
            filesystem.write_new(str(self.uid_file), f"{self.id}-{uuid4().hex}".encode())
        known = set(self.runs())
        for run, overrides in points:
            run.write_json(run.sweep_file, {"sweep": os.path.relpath(self.path, run.path)})
            if run not in known:
                path = os.path.relpath(run.path, self.path)  # both may be moved together
                line = {"run": path, "overrides": list(overrides)}
                append_json_line(self.runs_file, line)


def sweep_of(run: RunDir) -> SweepDir | None:
    """Return the sweep that a run was last submitted in."""
    said = run.read_json(run.sweep_file)
    if not said:
        return None
    return SweepDir(_followed(run.path, said["sweep"], run.path.parent / "sweeps"))


def _followed(place: Path, noted: str, beside: Path) -> Path:
    """Return where a path leads that was noted at a place.

    Args:
        beside: where it is looked for by its name, if it is an absolute one that is gone: such
            were noted before, and the runs have been moved since.
    """
    path = Path(os.path.normpath(place / noted))
    if path.exists():
        return path
    if Path(noted).is_absolute():
        moved = beside / path.name
    else:  # the place may be a link
        moved = Path(os.path.normpath(place.resolve() / noted))
    return moved if moved.exists() else path


def is_sweep(path: Path) -> bool:
    """Return whether a path is that of a sweep."""
    return SweepDir(path).runs_file.exists()


def expand_sweeps(paths: Iterable[Path]) -> list[RunDir]:
    """Return the runs at some paths; that of a sweep stands for all its runs."""
    found: list[RunDir] = []
    for path in paths:
        absolute = path.absolute()
        found += SweepDir(absolute).runs() if is_sweep(absolute) else [RunDir(absolute)]
    return found
