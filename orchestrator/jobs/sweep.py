"""Submit the points of a sweep as job arrays, and return their objective values to the sweeper.

Hydra's basic sweeper launches all points in one batch. A sweeper that searches launches a few at a
time and chooses the next ones by the objective values of those before.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_sharding.io.atomic_file import write_atomic
from orchestrator.jobs.messages import print_array_submission
from orchestrator.jobs.status import RunStatus, run_statuses
from orchestrator.jobs.submit import Submission, check_not_queued, queued_jobs, submit_arrays
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_runs, run_of
from orchestrator.metrics import MAIN_METRICS, main_metrics
from orchestrator.number_format import pluralize
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir, RunError, RunningError
from orchestrator.run.sweepdir import RESULTS, SweepDir
from slurm.errors import SlurmError

_POLL_S = 5.0


@dataclass
class Sweep:
    """One `tahoe submit -m`.

    Args:
        after: a run that must finish before any of these starts.
        directory: the directory of the sweep, known with its first batch.
    """

    after: RunDir | None = None
    directory: SweepDir | None = None

    def launch(
        self, points: Sequence[ComposedConfig], wait: bool
    ) -> list[float | Exception | None]:
        """Submit a batch of points, none of them if one is invalid.

        Returns:
            The objective value of each point, or the reason why it has none; None without `wait`.
        """
        check_not_queued([run_of(point.config) for point in points])
        members = []
        for point, (run, plan) in zip(points, create_or_open_runs(points), strict=True):
            if isinstance(plan, RunningError):
                raise plan
            members.append(Submission(run, point.config, plan.num_steps))
        runs = [member.run for member in members]
        if self.directory is None:
            self.directory = SweepDir.of(Path(points[0].config.runs_dir), runs)
        self.directory.add(zip(runs, (point.overrides for point in points), strict=True))
        unfinished = [member for member in members if not member.run.is_finished]
        arrays = submit_arrays(self.directory, unfinished, after=self.after)
        print_array_submission(self.directory, members, arrays)
        return _wait_for(runs) if wait else [None] * len(runs)

    def keep(self, sweeper_dir: Path) -> None:
        """Print and keep the results of a search, if the sweeper has written any."""
        results = sweeper_dir / RESULTS
        if self.directory is not None and results.exists():
            write_atomic(self.directory.results_file, results.read_bytes())
            print(f"results of the search ({self.directory.results_file}):\n{results.read_text()}")


def _wait_for(runs: Sequence[RunDir]) -> list[float | Exception | None]:
    """Wait until all runs have ended; return their objective values."""
    num_printed = None
    while num_active := len(_active_runs(runs)):
        if num_active != num_printed:
            print(f"{len(runs) - num_active} of {pluralize(len(runs), 'run')} ended", flush=True)
            num_printed = num_active
        time.sleep(_POLL_S)
    statuses = zip(runs, run_statuses(runs), strict=True)
    return [_objective_value(run, status) for run, status in statuses]


def _active_runs(runs: Sequence[RunDir]) -> set[RunDir]:
    """Return the runs that may still change: all of them while Slurm does not answer."""
    try:
        return {*queued_jobs(runs), *(run for run in runs if run.is_alive)}
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr)
        return set(runs)


def _objective_value(run: RunDir, status: RunStatus) -> float | Exception:
    """Return the best value of the objective, or an error that says why there is none.

    A point that somebody has stopped counts with its best value so far. The choice is printed for
    all points that have not finished.
    """
    curves = {name: curve(run, name) for name in MAIN_METRICS}  # in percent, to be maximized
    name = main_metrics({name for name, values in curves.items() if values})[0]
    best = max(curves[name].values(), default=None)
    if best is not None and status.state == "finished":
        return float(best)
    value = f"{name} was never measured" if best is None else f"best {name} {best:.6g}"
    ended = f"{run.path}: {status.state} ({status.why}), {value}"
    if best is not None and status.state == "stopped":
        print(f"warning: {ended}, which counts as its objective value", file=sys.stderr)
        return float(best)
    error = RunError(f"{ended}: the point is reported to the sweeper as failed", value=run.path)
    print(f"warning: {error}", file=sys.stderr)
    return error
