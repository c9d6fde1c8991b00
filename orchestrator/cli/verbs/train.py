"""`tahoe train`, `resume` and `create`: runs on this machine, or for any launcher."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shared.arguments import HYDRA_FLAGS, overrides_argument, run_argument
from orchestrator.cli.shared.commands import Command

if TYPE_CHECKING:
    from orchestrator.config.schema import Config
    from orchestrator.launch.compose import ComposedConfig
    from orchestrator.launch.extend_schedule import Choice
    from orchestrator.launch.ranks.rank_servers import RankServers
    from orchestrator.run.plan import Plan
    from orchestrator.run.rundir import RunDir, RunningError
    from orchestrator.run.sweepdir import SweepDir

_EXAMPLES = """\
\b
OVERRIDES are Hydra's: a group as model=resnet18, a key as recipe.epochs=5.

\b
  tahoe train model=lenet5_1998 data=digits launcher.nproc_per_node=2
  tahoe train model=timm/resnet50 data=shards data.url=/data/set
  tahoe train -m model=lenet5_1998,resnet18 seed=1,2     a sweep, one point after the other
  tahoe train --cfg job                                  print the config and exit
  tahoe train --info defaults                            print its sources and exit
  eval "$(tahoe train -sc install=bash)"                 tab completion in this shell
"""

_CREATE_EXAMPLES = """\
\b
OVERRIDES are those of `tahoe train`, -m too. Then any launcher that sets torchrun's variables:

\b
  RUN=$(tahoe create model=timm/resnet50 data=shards data.url=/data/set)
  torchrun --nproc-per-node 8 -m orchestrator.training.worker "$RUN"
"""


@click.command(cls=Command, context_settings=HYDRA_FLAGS, epilog=_EXAMPLES)
@overrides_argument("overrides of the config, and Hydra's flags")
def train(overrides: tuple[str, ...]) -> int:
    """Start a run from a config, or continue an unfinished one."""
    from orchestrator.config.parse import ConfigError
    from orchestrator.launch.compose import compose
    from orchestrator.launch.create_run import create_or_open_runs
    from orchestrator.launch.ranks.rank_servers import RankServers

    with RankServers() as servers:
        points = compose(overrides, prepare=servers.prepare)
        if any(point.config.launcher.name != "local" for point in points):
            raise ConfigError(
                "launcher=slurm: `tahoe train` runs on this machine", hint="Use `tahoe submit`."
            )
        opened = create_or_open_runs(points)
        sweep = _record_sweep(points, [run for run, _ in opened]) if len(points) > 1 else None
        exit_code = _train_points(points, opened, servers)
    # Those of a sweep at its end: they would take processors from the next points.
    _start_drawing([run for run, _ in opened], sweep)
    return exit_code


def _train_points(
    points: "Sequence[ComposedConfig]",
    opened: "Sequence[tuple[RunDir, Plan | RunningError]]",
    servers: "RankServers",
) -> int:
    """Run one attempt of each point, one after the other; return the highest exit code."""
    from orchestrator.run.outcome import CRASHED, ExitCode
    from orchestrator.run.rundir import RunningError

    worst = 0
    for point, (run, plan) in zip(points, opened, strict=True):
        if run.is_finished:
            print(f"{run.path} is finished already; skipped (if_finished=skip)")
            continue
        try:
            if isinstance(plan, RunningError):
                raise plan
            print(f"run directory: {run.path}", flush=True)
            exit_code = _run_attempt(run, point.config, plan, servers or None)
        except RunningError as error:
            print(f"error: {error}", file=sys.stderr)
            exit_code = CRASHED
        worst = max(worst, exit_code)
        if exit_code not in (CRASHED, ExitCode.FINISHED, ExitCode.FAILED_PERMANENTLY):
            break  # a stop was requested, for the whole sweep
    return worst


@click.command(cls=Command, context_settings=HYDRA_FLAGS, epilog=_CREATE_EXAMPLES)
@overrides_argument("overrides of the config, and Hydra's flags")
def create(overrides: tuple[str, ...]) -> None:
    """Create the run directory of a config and print its path; start nothing."""
    from orchestrator.launch.compose import compose
    from orchestrator.launch.create_run import create_or_open_runs
    from orchestrator.run.rundir import RunningError

    points = compose(overrides)
    with redirect_stdout(sys.stderr):  # a script reads the paths
        opened = create_or_open_runs(points)
        if len(points) > 1:
            _record_sweep(points, [run for run, _ in opened])
    for run, plan in opened:
        if isinstance(plan, RunningError):
            raise plan
        run.stop_file.unlink(missing_ok=True)
        print(run.path.absolute())


def _record_sweep(points: "Sequence[ComposedConfig]", runs: "Sequence[RunDir]") -> "SweepDir":
    """Record the runs of a sweep in its directory, and print that."""
    from orchestrator.run.sweepdir import SweepDir

    sweep = SweepDir.of(Path(points[0].config.runs_dir), runs)
    sweep.add(zip(runs, (point.overrides for point in points), strict=True))
    print(f"sweep: {sweep.path}", flush=True)
    return sweep


@click.command(cls=Command)
@run_argument
@overrides_argument("recipe.epochs=N extends the run; keys of runtime, slurm, logging are free")
@click.option(
    "--schedule",
    type=click.Choice(("stretch", "restart", "keep")),
    help="learning rate of an extended run whose schedule has ended",
)
def resume(run: Path, overrides: tuple[str, ...], schedule: "Choice | None") -> int:
    """Continue a run from its newest checkpoint."""
    from orchestrator.cli.verbs.jobs import submit_run
    from orchestrator.config.parse import parse
    from orchestrator.jobs.submit import Submission, check_not_queued
    from orchestrator.launch.resume_run import resume_run
    from orchestrator.run.rundir import RunDir

    run_dir = RunDir(run.absolute())
    check_not_queued([run_dir])
    plan = resume_run(run_dir, overrides, schedule)
    config = parse(run_dir.read_config())
    if config.launcher.name == "slurm":
        submit_run(Submission(run_dir, config, plan.num_steps))
        return 0
    exit_code = _run_attempt(run_dir, config, plan)
    _start_drawing([run_dir])
    return exit_code


def _run_attempt(
    run: "RunDir", config: "Config", plan: "Plan", servers: "RankServers | None" = None
) -> int:
    """Run one attempt on this machine; print the results of a finished run."""
    from orchestrator.cli.shared.finished import results_summary
    from orchestrator.launch.local_launcher import run_attempt
    from orchestrator.run.outcome import ExitCode

    exit_code = run_attempt(run, config, plan, servers=servers)
    if exit_code == ExitCode.FINISHED:
        print(results_summary(run))
    return exit_code


def _start_drawing(runs: "Sequence[RunDir]", sweep: "SweepDir | None" = None) -> None:
    """Have the plots of finished runs drawn by a process that nothing waits for; print its id."""
    from orchestrator.tracking.shipping.run_plots import are_drawn, start_drawing, wants_plots

    tracked = (run for run in runs if run.mlflow_file.exists())
    due = [run for run in tracked if wants_plots(run) and not are_drawn(run)]
    if due:
        what = sweep or due[0]
        process = start_drawing(due, what.plots_log)
        remedy = f"if it is ended, tahoe sync {what.shell_path} does"
        print(f"  plots for MLflow:      process {process.pid} draws them; {remedy}")
