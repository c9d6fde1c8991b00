"""What `tahoe submit` would give to Slurm, for people to read before it does."""

from collections.abc import Sequence

from orchestrator.figures import counted
from orchestrator.launch.ask import UnansweredError
from orchestrator.launch.compose import Composed, compose
from orchestrator.launch.cost import cost_of
from orchestrator.launch.create import plan_of, run_path
from orchestrator.launch.idle import tell_idle
from orchestrator.launch.likeness import check_likeness
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
    """Print the arithmetic and the job script of a run; of a sweep, those of each array's first."""
    runs = [RunDir(run_path(point.config)) for point in points]
    plans = [plan_of(point.config) for point in points]
    for point in points:
        tell_idle(point.config, point.overrides)
        check_likeness(point.config, point.overrides)
    code = in_place()
    jobs = [job_of(run, point.config, code) for run, point in zip(runs, points, strict=True)]
    for indices in together(jobs):
        first = indices[0]
        lines = [*plans[first].lines(), _cost_line(points[first], plans[first])]
        if len(points) > 1:
            lines.append(f"an array of {counted(len(indices), 'job')} like this:")
            for i in indices:
                steps = counted(plans[i].num_steps, "step")
                lines.append(f"  {steps}  {' '.join(points[i].overrides)}")
        print("\n".join(f"# {line}" for line in lines))
        print(f"# The job script:\n\n{script(jobs[first])}")


def _cost_line(point: Composed, plan: Plan) -> str:
    try:
        return str(cost_of(point.config, plan))
    except UnansweredError as error:
        return f"cost unknown: {error}"
