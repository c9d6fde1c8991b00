"""`tahoe submit|status|list|logs|cancel|doctor`: runs as Slurm jobs."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.shared.arguments import (
    HYDRA_FLAGS,
    PATH,
    flag,
    from_mlflow_option,
    json_option,
    overrides_argument,
    run_argument,
    runs_argument,
    runs_dir_option,
)
from orchestrator.cli.shared.commands import Command
from orchestrator.cli.shared.hints import translate
from orchestrator.console import print_json

if TYPE_CHECKING:
    from orchestrator.jobs.submit import Submission
    from orchestrator.run.rundir import RunDir

_EXAMPLES = """\
\b
OVERRIDES are those of `tahoe train`, -m too. The resources of the job are the keys of `slurm`:

\b
  tahoe submit model=timm/resnet50 data=shards data.url=/data/set slurm.nodes=4
  tahoe submit --dry-run slurm=default             print arithmetic and script, submit nothing
  tahoe submit --after runs/first ...              start when that run has finished
  tahoe submit -m model=lenet5_1998,resnet18 seed=1,2   a sweep, as a job array
  tahoe submit -m hydra/sweeper=NAME hydra.launcher.wait=true ...    a search that chooses points
"""


@click.command(cls=Command, context_settings=HYDRA_FLAGS, epilog=_EXAMPLES)
@overrides_argument("overrides of the config, and Hydra's flags")
@flag("--dry-run", help="print the arithmetic and the script only")
@click.option("--after", type=PATH, metavar="RUN", help="run that must finish first")
def submit(overrides: tuple[str, ...], dry_run: bool, after: Path | None) -> None:
    """Submit a run or a sweep to Slurm, or continue one."""
    from orchestrator.jobs import dry_run as dry_runs
    from orchestrator.jobs.submit import Submission, check_not_queued
    from orchestrator.jobs.sweep import Sweep
    from orchestrator.launch.compose import compose
    from orchestrator.launch.create_run import create_or_open_run, run_of
    from orchestrator.run.rundir import RunDir

    overrides = ("hydra/launcher=slurm", "launcher=slurm", *overrides)
    if dry_run:
        dry_runs.dry_run(overrides)
        return
    first = RunDir(after.absolute()) if after else None
    sweep = Sweep(first)
    for point in compose(overrides, sweep.launch, sweep.keep):
        check_not_queued([run_of(point.config)])  # before its directory is changed
        run, plan = create_or_open_run(point)
        if run.is_finished:
            print(f"{run.path} is finished already; skipped (if_finished=skip)")
        else:
            submit_run(Submission(run, point.config, plan.num_steps), first)


def submit_run(submission: "Submission", after: "RunDir | None" = None) -> None:
    """Submit a run; print its job and the commands to follow it."""
    from orchestrator.jobs.messages import print_submission
    from orchestrator.jobs.submit import submit as submit_job

    print_submission(submission, submit_job(submission, after=after))


@click.command(cls=Command)
@runs_argument
@json_option
def status(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show the status of runs in detail."""
    from orchestrator.jobs.status import as_json as to_json
    from orchestrator.jobs.status import print_details, print_statuses, run_statuses
    from orchestrator.run.sweepdir import expand_sweeps, is_sweep

    statuses = run_statuses(expand_sweeps(runs))
    if as_json:
        print(to_json(statuses))
    elif any(is_sweep(path) for path in runs):
        print_statuses(statuses)
    else:
        for run_status in statuses:
            print_details(run_status)


@click.command("list", cls=Command)
@runs_dir_option
@from_mlflow_option
@json_option
def list_runs(runs_dir: Path, from_mlflow: str | None, as_json: bool) -> None:
    """List runs, a line each."""
    from orchestrator.jobs.status import as_json as to_json
    from orchestrator.jobs.status import print_statuses, run_statuses, statuses_from_mlflow
    from orchestrator.tracking.records.record_index import find_runs

    if from_mlflow is not None:
        statuses = statuses_from_mlflow(from_mlflow)
    else:
        runs = find_runs(runs_dir.absolute())
        runs.sort(key=lambda run: run.path.stat().st_mtime)
        statuses = run_statuses(runs, skip_unreadable=True)
    if as_json:
        print(to_json(statuses))
    else:
        print_statuses(statuses)


@click.command(cls=Command)
@run_argument
@flag("-f", "--follow", help="print new lines until the run ends")
@click.option("--rank", type=int, default=0, help="rank whose log is printed")
def logs(run: Path, follow: bool, rank: int) -> None:
    """Print the log of a rank."""
    from orchestrator.jobs.logs import follow_log
    from orchestrator.jobs.submit import is_active
    from orchestrator.run.rundir import RunDir

    run_dir = RunDir(run.absolute())
    run_dir.read_config()  # fails if there is no run
    for line in follow_log(run_dir, rank, is_active=lambda: follow and is_active(run_dir)):
        print(line, flush=follow)


@click.command(cls=Command)
@runs_argument
@flag("--now", help="end running jobs without a last save")
def cancel(runs: tuple[Path, ...], now: bool) -> None:
    """Cancel the jobs of runs; running ones save first."""
    from orchestrator.jobs.submit import cancel as cancel_jobs
    from orchestrator.run.sweepdir import expand_sweeps

    run_dirs = expand_sweeps(runs)
    for run in run_dirs:
        run.read_config()  # fails if there is no run
    for line in cancel_jobs(run_dirs, now=now):
        print(line)


@click.command(cls=Command, context_settings=HYDRA_FLAGS)
@overrides_argument("overrides of the config, as for `tahoe submit`")
@flag("--on-nodes", help="also check the nodes, by a job of this size")
@json_option
def doctor(overrides: tuple[str, ...], on_nodes: bool, as_json: bool) -> int:
    """Check what could go wrong with a run."""
    from orchestrator.preflight.doctor import print_result, run_checks

    results = []
    command = click.get_current_context().command
    for result in run_checks(overrides, nodes=on_nodes):
        results.append(replace(result, message=translate(result.message, command)))
        if not as_json:  # each as it comes
            print_result(results[-1])
    if as_json:
        print_json([asdict(result) for result in results])
    return int(any(result.status == "fail" for result in results))
