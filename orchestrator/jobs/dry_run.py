"""Dry run of `tahoe submit`: print the plans and the job scripts, submit nothing."""

from collections.abc import Iterator, Sequence

from orchestrator.config.schema import Config
from orchestrator.jobs.submit import job_request, render_job_script
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.model_cost import model_cost
from orchestrator.launch.checks.unused_keys import warn_unused_keys
from orchestrator.launch.code_snapshot import current_python_path
from orchestrator.launch.compose import ComposedConfig, compose
from orchestrator.launch.create_run import make_plan_for, run_path
from orchestrator.launch.torch_subprocess import TorchWorkerError
from orchestrator.number_format import pluralize
from orchestrator.run.plan import Plan, ranks_fit
from orchestrator.run.rundir import RunDir
from slurm.job_array import group_compatible


class _FirstBatchOnly(Exception):  # noqa: N818  not an error
    """Stop a search after its first batch: the results of that batch decide on the next."""


def dry_run(overrides: Sequence[str]) -> None:
    """Print the jobs that would be submitted; of a search, those of its first batch."""
    try:
        points = compose(overrides, _print_batch)
    except _FirstBatchOnly:
        print("\n# Further points depend on the results of these.")
    else:
        _print_jobs(points)


def _print_batch(points: Sequence[ComposedConfig], wait: bool) -> list[None]:
    _print_jobs(points)
    if wait:
        raise _FirstBatchOnly
    return [None] * len(points)


def _print_jobs(points: Sequence[ComposedConfig]) -> None:
    """Print the plan and the job script of the first job of each array."""
    plans = [make_plan_for(point.config) for point in points]
    for point in points:
        warn_unused_keys(point.config, point.overrides)
        check_data_matches_config(point.config, point.overrides)
    code = current_python_path()
    jobs = [job_request(RunDir(run_path(p.config)), p.config, code) for p in points]
    for indices in group_compatible(jobs):
        first = indices[0]
        lines = [*plans[first].summary_lines(), _cost_line(points[first], plans[first])]
        lines += _node_lines(points[first].config, plans[first])
        if len(points) > 1:
            lines.append(f"an array of {pluralize(len(indices), 'job')} like this:")
            for i in indices:
                steps = pluralize(plans[i].num_steps, "step")
                lines.append(f"  {steps}  {' '.join(points[i].overrides)}")
        print("\n".join(f"# {line}" for line in lines))
        print(f"# The job script:\n\n{render_job_script(jobs[first])}")


def _node_lines(config: Config, plan: Plan) -> Iterator[str]:
    """Yield the numbers of nodes that a job may run on, where Slurm chooses; its spare nodes."""
    slurm = config.slurm
    if len(config.world_sizes) > 1:
        config = plan.with_sizes(config)
        sizes = (size for size in config.world_sizes if ranks_fit(config, size, plan.num_train))
        numbers = ", ".join(str(size // slurm.ranks_per_node) for size in sizes)
        yield f"on as many nodes as Slurm has at the time: {numbers}; planned for the most"
    if slurm.spare_nodes:
        yield f"{pluralize(slurm.spare_nodes, 'spare node')}, to replace lost ones"


def _cost_line(point: ComposedConfig, plan: Plan) -> str:
    try:
        return str(model_cost(point.config, plan))
    except TorchWorkerError as error:
        return f"cost unknown: {error}"
