"""`tahoe submit|status|list|logs|cancel|rehearse`: runs as jobs of Slurm."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.shared.arguments import add_from_mlflow, add_runs, add_verb
from orchestrator.number_format import pluralize

if TYPE_CHECKING:
    from orchestrator.jobs.submit import Submission
    from orchestrator.run.rundir import RunDir
    from slurm.local_cluster import LocalCluster

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

SUBMIT_EPILOG = """\
OVERRIDES are those of `tahoe train`, -m too. What is asked of Slurm are keys of `cluster`:

  tahoe submit model=timm/resnet50 data=shards data.url=/data/set slurm.nodes=4
  tahoe submit --dry-run slurm=default             print arithmetic and script, submit nothing
  tahoe submit --after runs/first ...              start when that run has finished
  tahoe submit -m model=lenet5_1998,resnet18 seed=1,2   the points of a sweep, as a job array
  tahoe submit -m hydra/sweeper=NAME hydra.launcher.wait=true ...    points that a search chooses
"""


def add_cluster_verbs(verbs: "Verbs") -> None:
    """Add the verbs; each sets `call` to what is to be run."""
    submit_verb = add_verb(verbs, "submit", submit, "submit a run to Slurm, or go on with one")
    submit_verb.formatter_class = argparse.RawDescriptionHelpFormatter
    submit_verb.epilog = SUBMIT_EPILOG
    add_submit_options(submit_verb)
    submit_verb.add_argument("overrides", nargs="*", metavar="OVERRIDES", help="see below")
    status_verb = add_verb(verbs, "status", status, "say how runs stand, all that is known")
    add_runs(status_verb)
    list_verb = add_verb(verbs, "list", list_runs, "print a line for each run")
    runs_help = "where run directories lie (default: %(default)s)"
    list_verb.add_argument("--runs-dir", type=Path, default=Path("runs"), help=runs_help)
    add_from_mlflow(list_verb)
    for verb in (status_verb, list_verb):
        verb.add_argument("--json", action="store_true", help="print JSON")
    logs_verb = add_verb(verbs, "logs", logs, "print what a rank has written")
    _add_run(logs_verb)
    logs_verb.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs_verb.add_argument("--rank", type=int, default=0, help="default: %(default)s")
    cancel_verb = add_verb(verbs, "cancel", cancel, "end the jobs of runs; running ones save first")
    add_runs(cancel_verb)
    cancel_verb.add_argument("--now", action="store_true", help="do not let it save")
    doctor_verb = add_verb(verbs, "doctor", doctor, "look for what could go wrong with a run")
    add_doctor_options(doctor_verb)
    doctor_verb.add_argument("overrides", nargs="*", metavar="OVERRIDES", help="as for submit")
    _add_rehearse(verbs)


def add_doctor_options(verb: argparse.ArgumentParser) -> None:
    """Add what `doctor` takes besides overrides, which are Hydra's to read."""
    nodes_help = "also submit a job of this size that looks at its nodes"
    verb.add_argument("--on-nodes", action="store_true", help=nodes_help)
    verb.add_argument("--json", action="store_true", help="print JSON")


def add_submit_options(verb: argparse.ArgumentParser) -> None:
    """Add what `submit` takes besides overrides, which are Hydra's to read."""
    verb.add_argument(
        "--dry-run", action="store_true", help="print the arithmetic and the script, submit nothing"
    )
    verb.add_argument("--after", type=Path, metavar="RUN", help="start when that run has finished")


def _add_rehearse(verbs: "Verbs") -> None:
    text = "a real Slurm on this machine, to see what a job does when its cluster hurts it"
    rehearse = verbs.add_parser("rehearse", help=text, description=text[0].upper() + text[1:] + ".")
    actions = rehearse.add_subparsers(title="verbs", metavar="VERB", required=True)
    up = add_verb(actions, "up", rehearse_up, "start a cluster")
    up.add_argument("--nodes", type=int, default=3, help="default: %(default)s")
    for name, call, text in (
        ("down", rehearse_down, "end a cluster and all that runs on it"),
        ("kill-node", rehearse_kill_node, "cut a node off, as if its power had gone"),
        ("heal-node", rehearse_heal_node, "bring a killed node back"),
        ("preempt", rehearse_preempt, "let an urgent job take a run's nodes"),
    ):
        verb = add_verb(actions, name, call, text)
        if name.endswith("node"):
            verb.add_argument("node", metavar="NODE")
        if name == "preempt":
            _add_run(verb)
        directory_help = "of the cluster (default: that of $SLURM_CONF)"
        verb.add_argument("directory", nargs="?", type=Path, metavar="DIR", help=directory_help)


def submit(options: argparse.Namespace) -> int:
    """Submit the run of the config, with -m the runs of its points, or print what would be."""
    from orchestrator.jobs.dry_run import dry_run
    from orchestrator.jobs.submit import Submission, check_not_queued
    from orchestrator.jobs.sweep import Sweep
    from orchestrator.launch.compose import compose
    from orchestrator.launch.create_run import create_or_open_run, run_of
    from orchestrator.run.rundir import RunDir

    overrides = ["hydra/launcher=slurm", "launcher=slurm", *options.overrides]
    if options.dry_run:
        dry_run(overrides)
        return 0
    after = RunDir(options.after.absolute()) if options.after else None
    sweep = Sweep(after)
    for point in compose(overrides, sweep.launch, sweep.keep):
        check_not_queued([run_of(point.config)])  # before what lies there is changed
        run, plan = create_or_open_run(point)
        if run.is_finished:
            print(f"{run.path} is finished already; skipped (if_finished=skip)")
        else:
            submit_run(Submission(run, point.config, plan.num_steps), after)
    return 0


def submit_run(submission: "Submission", after: "RunDir | None" = None) -> None:
    """Submit a run and say where to look."""
    from orchestrator.jobs.messages import print_submission
    from orchestrator.jobs.submit import submit as submit_job

    print_submission(submission, submit_job(submission, after=after))


def status(options: argparse.Namespace) -> int:
    """Print how the runs stand."""
    from orchestrator.jobs.status import as_json, print_details, print_table, run_statuses
    from orchestrator.run.sweepdir import expand_sweeps, is_sweep

    found = run_statuses(expand_sweeps(options.runs))
    if options.json:
        print(as_json(found))
    elif any(is_sweep(path) for path in options.runs):
        print_table(found)
    else:
        for one in found:
            print_details(one)
    return 0


def list_runs(options: argparse.Namespace) -> int:
    """Print a line for each run in a directory."""
    from orchestrator.jobs.status import as_json, print_table, run_statuses, statuses_from_mlflow
    from orchestrator.tracking.records.record_index import find_runs

    if options.from_mlflow is not None:
        found = statuses_from_mlflow(options.from_mlflow)
    else:
        runs = find_runs(options.runs_dir.absolute())
        runs.sort(key=lambda run: run.path.stat().st_mtime)
        found = run_statuses(runs, skip_unreadable=True)
    if options.json:
        print(as_json(found))
    else:
        print_table(found)
    return 0


def logs(options: argparse.Namespace) -> int:
    """Print the log of a rank."""
    from orchestrator.jobs.logs import follow_log
    from orchestrator.jobs.submit import is_active
    from orchestrator.run.rundir import RunDir

    run = RunDir(options.run.absolute())
    run.read_config()  # says so if there is no run
    may_grow = (lambda: is_active(run)) if options.follow else (lambda: False)
    for line in follow_log(run, options.rank, is_active=may_grow):
        print(line, flush=options.follow)
    return 0


def cancel(options: argparse.Namespace) -> int:
    """End the jobs of runs."""
    from orchestrator.jobs.submit import cancel as cancel_jobs
    from orchestrator.run.sweepdir import expand_sweeps

    runs = expand_sweeps(options.runs)
    for run in runs:
        run.read_config()  # says so if there is no run
    for line in cancel_jobs(runs, now=options.now):
        print(line)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Say what could go wrong with a run."""
    from orchestrator.preflight.doctor import run_checks

    return run_checks(options.overrides, nodes=options.on_nodes, as_json=options.json)


def rehearse_up(options: argparse.Namespace) -> int:
    """Start a cluster and say how to use it."""
    from slurm.local_cluster import LocalCluster

    cluster = LocalCluster.start(options.nodes)
    print(
        f"# Idle: {pluralize(len(cluster.names), 'node')}, {', '.join(cluster.names)}. In this "
        "shell:"
    )
    for name, value in cluster.environ.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# and at the end: tahoe rehearse down {shlex.quote(str(cluster.directory))}")
    return 0


def rehearse_down(options: argparse.Namespace) -> int:
    """End a cluster."""
    _cluster(options).down()
    return 0


def rehearse_kill_node(options: argparse.Namespace) -> int:
    """Cut a node off."""
    _cluster(options).kill_node(options.node)
    return 0


def rehearse_heal_node(options: argparse.Namespace) -> int:
    """Bring a node back."""
    _cluster(options).revive_node(options.node)
    return 0


def rehearse_preempt(options: argparse.Namespace) -> int:
    """Let an urgent job take the nodes of a run for a moment."""
    from orchestrator.jobs.submit import active_job
    from orchestrator.run.rundir import RunDir, RunError

    run = RunDir(options.run.absolute())
    job = active_job(run)
    if job is None or job.state != "RUNNING":
        raise RunError(f"{run.id} runs on no node, so there is nothing to preempt.")
    _cluster(options).preempt(job.job_id)
    return 0


def _cluster(options: argparse.Namespace) -> "LocalCluster":
    from slurm.local_cluster import LocalCluster, LocalClusterError

    directory = options.directory
    if directory is None:
        if "SLURM_CONF" not in os.environ:
            raise LocalClusterError(
                "which cluster? Give its directory, or export SLURM_CONF as `tahoe rehearse up` "
                "has printed."
            )
        directory = Path(os.environ["SLURM_CONF"]).parent
    return LocalCluster.open(directory.absolute())


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory")
