"""The directory of a sweep: its runs, and the scripts of their Slurm arrays.

The runs are complete without it. Each refers to its sweep (`RunDir.sweep_file`), so that the
shipper of a run finds the parent run in MLflow.
"""

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from data_sharding.io import filesystem
from orchestrator.run.rundir import FileIn, RunDir, append_json_line, read_json_lines

RESULTS = "optimization_results.yaml"  # the name of Hydra's searching sweepers


@dataclass(frozen=True)
class SweepDir:
    """The paths of one sweep."""

    path: Path

    uid_file = FileIn("uid")
    runs_file = FileIn("runs.jsonl")  # one line for each run
    lock_file = FileIn("lock")  # held while the parent run is created in MLflow
    mlflow_file = FileIn("mlflow.json")  # the parent run in MLflow, as a hint
    plots_log = FileIn("plots.log")  # what the drawing of its runs' plots prints
    results_file = FileIn(RESULTS)  # the results of a searching sweeper

    @classmethod
    def of(cls, runs_dir: Path, runs: Sequence[RunDir]) -> "SweepDir":
        """Return the sweep that begins with these runs: the same for the same runs."""
        paths = "\0".join(sorted(str(run.path) for run in runs))
        digest = hashlib.sha256(paths.encode()).hexdigest()[:8]
        return cls(runs_dir / "sweeps" / f"sweep-{digest}")

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def uid(self) -> str:
        """A name that no other sweep has, not even one at an equal path."""
        return self.uid_file.read_text()

    @property
    def shell_path(self) -> str:
        """The path, quoted for a shell command in a message."""
        return shlex.quote(str(self.path))

    def array_script(self, number: int) -> Path:
        """Return the sbatch script of an array."""
        return self.path / f"array-{number}.sbatch"

    def array_runs(self, number: int) -> Path:
        """Return the file that lists the run directories of an array, one a line."""
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
        """Return the overrides of the runs, in the same order."""
        return [*self.points().values()]

    def points(self) -> dict[RunDir, list[str]]:
        """Return the runs with their overrides."""
        lines = read_json_lines(self.runs_file)
        return {RunDir(_follow(self.path, line["run"])): line["overrides"] for line in lines}

    def add(self, points: Iterable[tuple[RunDir, Sequence[str]]]) -> None:
        """Add runs with their overrides."""
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
    reference = run.read_json(run.sweep_file)
    return SweepDir(_follow(run.path, reference["sweep"])) if reference else None


def _follow(directory: Path, relative: str) -> Path:
    """Resolve a path relative to a directory, which may be a link."""
    path = Path(os.path.normpath(directory / relative))
    target = Path(os.path.normpath(directory.resolve() / relative))
    return target if target.exists() and not path.exists() else path


def is_sweep(path: Path) -> bool:
    """Check whether a path is that of a sweep."""
    return SweepDir(path).runs_file.exists()


def expand_sweeps(paths: Iterable[Path]) -> list[RunDir]:
    """Return the runs at some paths; the path of a sweep stands for all its runs."""
    runs: list[RunDir] = []
    for path in map(Path.absolute, paths):
        runs += SweepDir(path).runs() if is_sweep(path) else [RunDir(path)]
    return runs
