"""The points of a sweep -> job arrays, and what each point was worth.

Hydra's sweeper calls for a batch of points at a time: all of them at once if it is the basic one,
a few after the worth of those before if it searches.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.jobs.messages import print_array_submission
from orchestrator.jobs.status import RunStatus, run_statuses
from orchestrator.jobs.submit import Submission, check_not_queued, queued_jobs, submit_arrays
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_runs, run_of
from orchestrator.metrics import RANKED_BY
from orchestrator.number_format import pluralize
from orchestrator.run.metric_stream import curve
from orchestrator.run.rundir import RunDir, RunError, RunningError, write_atomic
from orchestrator.run.sweepdir import RESULTS, SweepDir
from slurm.errors import SlurmError

OBJECTIVE = RANKED_BY[0]  # sweepers maximise it
_ASK_EVERY_S = 5.0


@dataclass
class Sweep:
    """One `tahoe submit -m`.

    Args:
        after: a run that must have finished before any of this.
        directory: of the sweep, known with its first batch.
    """

    after: RunDir | None = None
    directory: SweepDir | None = None

    def launch(
        self, points: Sequence[ComposedConfig], wait: bool
    ) -> list[float | Exception | None]:
        """Submit a batch of points; return what each was worth, if that is waited for.

        Raises:
            RunError, ConfigError, DataError, SlurmError: what is wrong with one, before any is
                submitted.
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
        overrides = (point.overrides for point in points)
        self.directory.add(zip(runs, overrides, strict=True))
        due = [member for member in members if not member.run.is_finished]
        arrays = submit_arrays(self.directory, due, after=self.after)
        print_array_submission(self.directory, members, arrays)
        return _wait_for(runs) if wait else [None] * len(runs)

    def keep(self, directory: Path) -> None:
        """Keep and print what a sweeper has found and written into a directory, if it has."""
        found = directory / RESULTS
        if self.directory is not None and found.exists():
            write_atomic(self.directory.results_file, found.read_bytes())
            print(f"the search has found ({self.directory.results_file}):\n{found.read_text()}")


def _wait_for(runs: Sequence[RunDir]) -> list[float | Exception | None]:
    """Return what each run was worth when all have ended."""
    num_told = None
    while num_going_on := len(_active_runs(runs)):
        if num_going_on != num_told:
            print(f"{len(runs) - num_going_on} of {pluralize(len(runs), 'run')} ended", flush=True)
            num_told = num_going_on
        time.sleep(_ASK_EVERY_S)
    return [_objective_value(run, one) for run, one in zip(runs, run_statuses(runs), strict=True)]


def _active_runs(runs: Sequence[RunDir]) -> set[RunDir]:
    """Return the runs that may still change; while Slurm does not answer, that is all of them."""
    try:
        return {*queued_jobs(runs), *(run for run in runs if run.is_alive)}
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr)
        return set(runs)


def _objective_value(run: RunDir, standing: RunStatus) -> float | Exception:
    """Return the best figure of a run that has finished or was stopped, or why there is none.

    Whoever stops a point has seen enough of it, and what it has measured stays true. Said is all
    that a sweeper is told, but of those that have finished.
    """
    best = max(curve(run, OBJECTIVE).values(), default=None)
    if best is not None and standing.state == "finished":
        return float(best)
    known = f"never measured {OBJECTIVE}" if best is None else f"best {OBJECTIVE} {best:.6g}"
    told = f"{run.path}: {standing.state} ({standing.why}), {known}"
    if best is not None and standing.state == "stopped":
        print(f"warning: {told}, which is what the sweeper is told", file=sys.stderr)
        return float(best)
    error = RunError(f"{told}: the sweeper is told that this point failed")
    print(f"warning: {error}", file=sys.stderr)
    return error
