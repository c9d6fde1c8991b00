"""Messages of `tahoe submit`: the jobs, the next commands, and the page in MLflow."""

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
    """Print where a job's run is, and create its MLflow run."""
    run = submission.run
    print(f"submitted job {job_id}: {run.path}")
    print(f"  tahoe status {run.shell_path}    tahoe logs -f {run.shell_path}")
    if submission.config.tracking.enabled and _sync([run]):
        mark = run.read_json(run.mlflow_file) or {}
        _print_link(submission.config.tracking.uri, mark, run.shell_path)


def print_array_submission(
    sweep: SweepDir,
    members: Sequence[Submission],
    arrays: Iterable[tuple[str, Sequence[Submission]]],
) -> None:
    """Print the element of each run in the arrays, and create the MLflow runs."""
    for member in members:
        if member.run.is_finished:
            print(f"{member.run.path} is finished already; skipped (if_finished=skip)")
    for array_id, elements in arrays:
        print(f"submitted array {array_id} of {pluralize(len(elements), 'run')}")
        for i, element in enumerate(elements):
            print(f"  {array_id}_{i}  {element.run.path}", flush=True)
    path = shlex.quote(str(sweep.path))
    print(f"sweep: {sweep.path}\n  tahoe status {path}    tahoe cancel {path}")
    tracked = [member for member in members if member.config.tracking.enabled]
    if tracked and _sync([member.run for member in tracked]):
        mark = json.loads(sweep.mlflow_file.read_text())
        _print_link(tracked[0].config.tracking.uri, mark, path)


def _sync(runs: Sequence[RunDir]) -> bool:
    """Create the MLflow runs; a server that is out of reach must not stop a job."""
    try:
        for run in runs:
            sync(run.path)
    except RunError as error:
        print(f"  not in MLflow yet: {error}")
        return False
    return True


def _print_link(uri: str, mark: dict[str, str], path: str) -> None:
    if uri.startswith("http"):
        print(f"  {run_page(uri, mark)}")
    else:
        print(f"  in MLflow: tahoe sync {path} && tahoe ui --uri {shlex.quote(uri)}")
