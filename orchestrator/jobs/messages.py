"""What the user is told of a submission: the jobs, what to type next, and where MLflow shows it."""

import json
import shlex
from collections.abc import Iterable, Sequence

from orchestrator.jobs.submit import Submission
from orchestrator.number_format import pluralize
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.run.sweepdir import SweepDir
from orchestrator.tracking.mlflow_ui.views import run_page
from orchestrator.tracking.shipping.shipper import sync


def print_submission(submission: Submission, job_id: str) -> None:
    """Say where a job's run is, and show it in MLflow."""
    run = submission.run
    print(f"submitted job {job_id}: {run.path}")
    print(f"  tahoe status {run.shell_path}    tahoe logs -f {run.shell_path}")
    if submission.config.tracking.enabled and _in_mlflow([run]):
        mark = run.read_json(run.mlflow_file) or {}
        _show_link(submission.config.tracking.uri, mark, run.shell_path)


def print_array_submission(
    sweep: SweepDir,
    members: Sequence[Submission],
    arrays: Iterable[tuple[str, Sequence[Submission]]],
) -> None:
    """Say which run is which element of the arrays, and show them in MLflow."""
    quoted = shlex.quote(str(sweep.path))
    for member in members:
        if member.run.is_finished:
            print(f"{member.run.path} is finished already; skipped (if_finished=skip)")
    for array_id, some in arrays:
        print(f"submitted array {array_id} of {pluralize(len(some), 'run')}")
        for i, member in enumerate(some):
            print(f"  {array_id}_{i}  {member.run.path}", flush=True)
    print(f"sweep: {sweep.path}")
    print(f"  tahoe status {quoted}    tahoe cancel {quoted}")
    tracked = [member for member in members if member.config.tracking.enabled]
    if tracked and _in_mlflow([member.run for member in tracked]):
        mark = json.loads(sweep.mlflow_file.read_text())
        _show_link(tracked[0].config.tracking.uri, mark, quoted)


def _in_mlflow(runs: Sequence[RunDir]) -> bool:
    """Make the MLflow runs; a server that is away must not stop a job."""
    try:
        for run in runs:
            sync(run.path)
    except RunError as error:
        print(f"  not in MLflow yet: {error}")
        return False
    return True


def _show_link(uri: str, mark: dict[str, str], quoted: str) -> None:
    if uri.startswith("http"):
        print(f"  {run_page(uri, mark)}")
    else:
        print(f"  in MLflow: tahoe sync {quoted} && tahoe ui --uri {shlex.quote(uri)}")
