"""What `tahoe submit` would give to Slurm, for people to read before it does."""

from collections.abc import Sequence

from orchestrator.launch.ask import UnansweredError
from orchestrator.launch.compose import Composed, compose
from orchestrator.launch.cost import cost_of
from orchestrator.launch.create import plan_of, run_path
from orchestrator.launch.snapshot import in_place
from orchestrator.launch.submit import job_of, script
from orchestrator.plan import Plan
from orchestrator.rundir import RunDir
from slurm.array import together


class _FirstBatchShown(Exception):  # noqa: N818  nothing has gone wrong
    """The points after the first batch depend on what those are worth."""


def preview(overrides: Sequence[str]) -> None:
    """Print what would be submitted; of a search, its first batch.

    Raises:
        ConfigError, DataError: a config makes no job or network, or does not fit its data set.
    """
    try:
        points = compose(overrides, _show_batch)
    except _FirstBatchShown:
        print("\n# Further points depend on what these will be worth.")
    else:
        _show_jobs(points)


def _show_batch(points: Sequence[Composed], wait: bool) -> list[None]:
    _show_jobs(points)
    if wait:
        raise _FirstBatchShown
    return [None] * len(points)


def _show_jobs(points: Sequence[Composed]) -> None:
    """Print the job script and the arithmetic of a run; of a sweep, those of each array's first."""
    runs = [RunDir(run_path(point.config)) for point in points]
    plans = [plan_of(point.config) for point in points]
    code = in_place()
    jobs = [job_of(run, point.config, code) for run, point in zip(runs, points, strict=True)]
    for indices in together(jobs):
        first = indices[0]
        print(script(jobs[first]))
        lines = [*plans[first].lines(), _cost_line(points[first], plans[first])]
        print("\n".join(f"# {line}" for line in lines))
        if len(points) > 1:
            print(f"\n# {len(indices)} jobs like this one, as an array:")
            for i in indices:
                print(f"#   {plans[i].num_steps:,} steps  {' '.join(points[i].overrides)}")


def _cost_line(point: Composed, plan: Plan) -> str:
    try:
        return str(cost_of(point.config, plan))
    except UnansweredError as error:
        return f"cost unknown: {error}"
