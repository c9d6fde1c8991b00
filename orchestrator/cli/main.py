"""The verbs of `tahoe`. Each imports what it needs when it is called, so help comes at once."""

import argparse
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.dataset.parser import add_data_verbs, add_shard_verbs
from orchestrator.cli.shared.arguments import Parser, add_runs, add_verb
from orchestrator.cli.verbs.checkpoints import add_ckpt_verbs
from orchestrator.cli.verbs.compare import add_compare_verb
from orchestrator.cli.verbs.drill import add_drill_options, drill
from orchestrator.cli.verbs.evaluate import add_evaluate_verb
from orchestrator.cli.verbs.import_results import add_import_verb
from orchestrator.cli.verbs.jobs import (
    add_cluster_verbs,
    add_doctor_options,
    add_submit_options,
    doctor,
    submit,
    submit_run,
)
from orchestrator.cli.verbs.models import add_lineage_verbs
from orchestrator.cli.verbs.register import add_register_verb
from orchestrator.cli.verbs.report import add_report_verb

if TYPE_CHECKING:
    from orchestrator.config.schema import Config
    from orchestrator.run.plan import Plan
    from orchestrator.run.rundir import RunDir

DESCRIPTION = "Train image classifiers on a cluster; resume exactly; compare runs in MLflow."

TRAIN_EPILOG = """\
OVERRIDES are Hydra's: a group as model=resnet18, a key as recipe.epochs=5.

  tahoe train model=lenet5_1998 data=digits launcher.nproc_per_node=2
  tahoe train model=timm/resnet50 data=shards data.url=/data/set
  tahoe train -m model=lenet5_1998,resnet18 seed=1,2     each point after the other
  tahoe train --cfg job                                  print the config and exit
  tahoe train --info defaults                            where it comes from
  eval "$(tahoe train -sc install=bash)"                 tab completion in this shell
"""


VERBS = (
    *("train", "submit", "resume", "status", "list", "logs", "cancel", "compare", "report"),
    *("sync", "ui", "evaluate", "lineage", "describe", "ckpt", "doctor", "drill", "shard"),
    *("data", "rehearse", "register", "import"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; end in silence if nobody reads any more (`| head`)."""
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise  # of another pipe: that is news
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # which Python flushes once more when it ends
            os.dup2(nowhere, stream.fileno())
        return 128 + signal.SIGPIPE  # as a shell says it of programs that the signal ends


def _is_output_closed() -> bool:
    """Whether stdout or stderr is a pipe that has lost its reader."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)  # errors are reported unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(given: list[str]) -> int:
    if given[:1] in (["-sc"], ["--shell-completion"]):
        return _complete(given)
    parser = _parser()
    if given[:1] == ["train"] and not {"-h", "--help"} & set(given):
        return _run_command(_train, argparse.Namespace(overrides=given[1:]))
    for verb, call, add_options in (
        ("submit", submit, add_submit_options),
        ("doctor", doctor, add_doctor_options),
        ("drill", drill, add_drill_options),
    ):
        if given[:1] == [verb] and not {"-h", "--help"} & set(given):
            return _run_command(call, _with_overrides(verb, add_options, given[1:]))
    options = parser.parse_args(given)
    return _run_command(options.call, options)


def _run_command(call: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a verb; what the user can mend is told without a traceback."""
    from data_sharding.errors import UserError
    from orchestrator.config.parse import ConfigError
    from slurm.errors import SlurmError

    try:
        return call(options)
    except (UserError, SlurmError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 93 if isinstance(error, ConfigError) else 1
    except PermissionError as error:
        remedy = "Ask whoever it belongs to for it, or use a directory of your own."
        print(f"error: {error.filename}: {error.strerror}. {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _train(options: argparse.Namespace) -> int:
    from orchestrator.config.parse import ConfigError
    from orchestrator.launch.compose import compose
    from orchestrator.launch.create_run import create_or_open_runs
    from orchestrator.launch.local_launcher import CRASHED
    from orchestrator.run.exit_status import ExitCode
    from orchestrator.run.rundir import RunningError
    from orchestrator.run.sweepdir import SweepDir

    points = compose(options.overrides)
    if any(point.config.launcher.name != "local" for point in points):
        raise ConfigError("launcher=slurm: `tahoe train` runs on this machine; use `tahoe submit`.")
    opened = create_or_open_runs(points)
    if len(points) > 1:
        runs = [run for run, _ in opened]
        sweep = SweepDir.of(Path(points[0].config.runs_dir), runs)
        sweep.add(zip(runs, (point.overrides for point in points), strict=True))
        print(f"sweep: {sweep.path}", flush=True)
    worst = 0
    for point, (run, plan) in zip(points, opened, strict=True):
        if run.is_finished:
            print(f"{run.path} is finished already; skipped (if_finished=skip)")
            continue
        try:
            if isinstance(plan, RunningError):
                raise plan
            print(f"run directory: {run.path}", flush=True)
            exit_code = _run_attempt(run, point.config, plan)
        except RunningError as error:
            print(f"error: {error}", file=sys.stderr)
            exit_code = CRASHED
        worst = max(worst, exit_code)
        if exit_code not in (CRASHED, ExitCode.FINISHED, ExitCode.NEVER_RESTART):
            break  # somebody asked to stop, and not only this point
    return worst


def _run_attempt(run: "RunDir", config: "Config", plan: "Plan") -> int:
    """Run one attempt on this machine; print the results of a run that is finished."""
    from orchestrator.cli.shared.finished import results_summary
    from orchestrator.launch.local_launcher import run_attempt
    from orchestrator.run.exit_status import ExitCode

    exit_code = run_attempt(run, config, plan)
    if exit_code == ExitCode.FINISHED:
        print(results_summary(run))
    return exit_code


def _with_overrides(
    verb: str, add_options: Callable[[argparse.ArgumentParser], None], given: list[str]
) -> argparse.Namespace:
    """Take a verb's own options out; Hydra reads the rest."""
    parser = Parser(f"tahoe {verb}", allow_abbrev=False)
    add_options(parser)
    options, overrides = parser.parse_known_args(given)
    options.overrides = overrides
    return options


def _resume(options: argparse.Namespace) -> int:
    from orchestrator.config.parse import parse
    from orchestrator.jobs.submit import Submission, check_not_queued
    from orchestrator.launch.resume_run import resume_run
    from orchestrator.run.rundir import RunDir

    run = RunDir(options.run.absolute())
    check_not_queued([run])
    plan = resume_run(run, options.overrides, options.schedule)
    config = parse(run.read_config())
    if config.launcher.name == "slurm":
        submit_run(Submission(run, config, plan.num_steps))
        return 0
    return _run_attempt(run, config, plan)


def _sync(options: argparse.Namespace) -> int:
    from orchestrator.jobs.status import never_begun
    from orchestrator.run.sweepdir import expand_sweeps
    from orchestrator.tracking.shipping.shipper import sync

    runs = expand_sweeps(options.runs)
    never = never_begun(runs)
    for run in runs:
        sync(run.path, never=never.get(run))
        if run in never:
            print(f"{run.id} is shown as KILLED: {never[run]}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from orchestrator.tracking.mlflow_ui.serve import serve_ui, tracking_uri_of

    serve_ui(options.uri or tracking_uri_of(options.runs), options.port, paths=options.runs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser("tahoe", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=version("tahoe-orchestrator"))
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    train = add_verb(
        verbs, "train", _train, "start a run from a config, or continue an unfinished one"
    )
    train.formatter_class = argparse.RawDescriptionHelpFormatter
    train.epilog = TRAIN_EPILOG
    train.add_argument("overrides", nargs="*", metavar="OVERRIDES", help="see below")

    resume = add_verb(verbs, "resume", _resume, "continue a run from its newest checkpoint")
    resume.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    overrides_help = "recipe.epochs=N extends it; keys of cluster, launcher, logging are free"
    resume.add_argument("overrides", nargs="*", metavar="OVERRIDES", help=overrides_help)
    schedule_help = (
        "of a run that is extended, what its learning rate does if that was to fall to the end"
    )
    resume.add_argument("--schedule", choices=("stretch", "restart", "keep"), help=schedule_help)

    add_cluster_verbs(verbs)

    add_evaluate_verb(verbs)

    add_lineage_verbs(verbs)

    drill_verb = add_verb(verbs, "drill", drill, "hurt a short version of a run, and compare")
    add_drill_options(drill_verb)
    drill_help = "as for train, or one run directory"
    drill_verb.add_argument("overrides", nargs="*", metavar="OVERRIDES|RUN", help=drill_help)

    ckpt = verbs.add_parser("ckpt", help="list, verify, prune and export checkpoints")
    add_ckpt_verbs(ckpt)

    shard = verbs.add_parser("shard", help="write, check and look at data sets of shards")
    add_shard_verbs(shard)

    data = verbs.add_parser("data", help="look at a data set as a network would")
    add_data_verbs(data)

    add_compare_verb(verbs)

    add_report_verb(verbs)

    add_register_verb(verbs)

    add_import_verb(verbs)

    sync = add_verb(verbs, "sync", _sync, "send to MLflow what has not arrived there")
    add_runs(sync)

    ui = add_verb(verbs, "ui", _ui, "open MLflow's pages on the store of the runs")
    page_help = "print the pages of these runs and sweeps, and of what they come from"
    ui.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=page_help)
    ui.add_argument("--uri", help="default: that of the runs, or else sqlite:///mlflow.db")
    ui.add_argument("--port", type=int, default=5000, help="default: %(default)s")
    return parser


def _complete(given: Sequence[str]) -> int:
    """Answer the shell's completer: the verbs first, and after `train` whatever Hydra offers."""
    line = os.environ.get("COMP_LINE", "")
    if "query" in "".join(given) and not re.match(r"\s*\S+\s+train\s", line):
        if re.fullmatch(r"\s*\S+\s+\S*", line):
            print(" ".join(VERBS))
        return 0
    return _train(argparse.Namespace(overrides=list(given)))


if __name__ == "__main__":
    sys.exit(main())
