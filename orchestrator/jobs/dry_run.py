"""What `tahoe submit` would give to Slurm, for people to read before it does."""

from collections.abc import Sequence

from orchestrator.jobs.submit import job_request, render_job_script
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.model_cost import model_cost
from orchestrator.launch.checks.unused_keys import warn_unused_keys
from orchestrator.launch.code_snapshot import current_python_path
from orchestrator.launch.compose import ComposedConfig, compose
from orchestrator.launch.create_run import make_plan_for, run_path
from orchestrator.launch.torch_subprocess import TorchWorkerError
from orchestrator.number_format import pluralize
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir
from slurm.job_array import group_compatible


class _FirstBatchShown(Exception):  # noqa: N818  nothing has gone wrong
    """The points after the first batch depend on what those are worth."""


def dry_run(overrides: Sequence[str]) -> None:
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


def _show_batch(points: Sequence[ComposedConfig], wait: bool) -> list[None]:
    _show_jobs(points)
    if wait:
        raise _FirstBatchShown
    return [None] * len(points)


def _show_jobs(points: Sequence[ComposedConfig]) -> None:
    """Print the arithmetic and the job script of a run; of a sweep, those of each array's first."""
    runs = [RunDir(run_path(point.config)) for point in points]
    plans = [make_plan_for(point.config) for point in points]
    for point in points:
        warn_unused_keys(point.config, point.overrides)
        check_data_matches_config(point.config, point.overrides)
    code = current_python_path()
    jobs = [job_request(run, point.config, code) for run, point in zip(runs, points, strict=True)]
    for indices in group_compatible(jobs):
        first = indices[0]
        lines = [*plans[first].summary_lines(), _cost_line(points[first], plans[first])]
        if len(points) > 1:
            lines.append(f"an array of {pluralize(len(indices), 'job')} like this:")
            for i in indices:
                steps = pluralize(plans[i].num_steps, "step")
                lines.append(f"  {steps}  {' '.join(points[i].overrides)}")
        print("\n".join(f"# {line}" for line in lines))
        print(f"# The job script:\n\n{render_job_script(jobs[first])}")


def _cost_line(point: ComposedConfig, plan: Plan) -> str:
    try:
        return str(model_cost(point.config, plan))
    except TorchWorkerError as error:
        return f"cost unknown: {error}"
