"""Jobs that train nothing, for `tahoe doctor`: would Slurm accept a run, and are its nodes fit?"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from data_sharding.io.atomic_file import write_atomic
from orchestrator.config.schema import Config
from orchestrator.jobs.submit import job_request, render_job_script
from orchestrator.launch.code_snapshot import current_python_path
from orchestrator.launch.create_run import run_path
from orchestrator.run.rundir import RunDir
from slurm import client
from slurm.errors import SlurmError
from slurm.node_check import render_node_check

_POLL_S = 5.0


def is_installed() -> bool:
    """Check whether this machine has Slurm's commands."""
    return shutil.which("sbatch") is not None


def why_unavailable() -> str | None:
    """Return the error of a Slurm that does not answer; None if it does."""
    return client.unreachable_reason()


def test_submission(config: Config) -> str:
    """Return when and where a job of this config would start, in Slurm's words."""
    job = job_request(RunDir(run_path(config)), config, current_python_path())
    with tempfile.NamedTemporaryFile("w", suffix=".sbatch") as file:
        file.write(render_job_script(job))
        file.flush()
        return client.test_submission(Path(file.name))


def run_node_check(run: RunDir, config: Config) -> str:
    """Run a job like this config's whose ranks check their nodes; return how it ended.

    Ctrl-C cancels it.
    """
    job = job_request(run, config, current_python_path())
    script = render_node_check(job, worker="orchestrator.torch_workers.node_probe")
    write_atomic(run.job_script, script)
    job_id = client.submit(run.job_script)
    try:
        return f"job {job_id} {_wait_for(job_id)}"
    except KeyboardInterrupt:
        client.cancel([job_id])
        print(f"job {job_id} is cancelled", file=sys.stderr)
        raise


def _wait_for(job_id: str) -> str:
    """Wait for the end of a job and return its state; meanwhile print its changes."""
    printed = ""
    while True:
        try:
            job = client.queued_jobs([job_id]).get(job_id)
        except SlurmError as error:  # the job continues all the same
            line = f"job {job_id}: {error}"
        else:
            if job is None:
                return "has ended"
            if job.state in client.ENDED:
                return f"has ended as {job.state}"
            line = f"job {job_id}: {job.state.lower()} {job.reason}".rstrip()
        if line != printed:
            print(line, file=sys.stderr, flush=True)
            printed = line
        time.sleep(_POLL_S)
