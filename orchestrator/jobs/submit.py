"""Submit runs as jobs of Slurm: write the script, submit it, find and cancel its job."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from data_sharding.io.atomic_file import write_atomic
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.launch.code_snapshot import current_python_path, snapshot_code
from orchestrator.number_format import pluralize
from orchestrator.run.rundir import RunDir, RunError, append_json_line, read_json_lines
from orchestrator.run.sweepdir import SweepDir
from slurm import client
from slurm.errors import SlurmError
from slurm.job_array import JobArray, group_compatible, render_array
from slurm.sbatch import SbatchOptions, SbatchRequest, overruled, render_sbatch


@dataclass(frozen=True)
class Submission:
    """A run to submit, with the number of its steps for those who follow it."""

    run: RunDir
    config: Config
    num_steps: int


def submit(submission: Submission, *, after: RunDir | None = None) -> str:
    """Write the job script of a run, submit it, and return the job's id.

    Args:
        after: a run that must finish before.
    """
    dependency = None if after is None else _active_job_id(after)
    job = write_script(submission.run, submission.config)
    print_overruled(job, submission.run.job_script)
    job_id = client.submit(submission.run.job_script, after=dependency)
    _record(submission, job_id)
    return job_id


def submit_arrays(
    sweep: SweepDir, members: Sequence[Submission], *, after: RunDir | None = None
) -> Iterator[tuple[str, list[Submission]]]:
    """Submit the runs of a sweep; yield each array's id with its runs, element 0 first.

    Runs with different resources (nodes, GPUs, a limit) cannot be one array.

    Raises:
        RunError, ConfigError: as for `submit`; nothing has been submitted.
        SlurmError: Slurm refuses an array; those before it stay submitted.
    """
    dependency = None if after is None else _active_job_id(after)
    jobs = [write_script(member.run, member.config) for member in members]
    submitted: list[str] = []
    for indices in group_compatible(jobs):
        elements = [members[i] for i in indices]
        number = sweep.new_array()
        runs_file, script = sweep.array_runs(number), sweep.array_script(number)
        write_atomic(runs_file, "".join(f"{element.run.path}\n" for element in elements))
        job = jobs[indices[0]]
        array = JobArray(f"tahoe {sweep.id}", str(sweep.path), runs_file.name, job, len(elements))
        with as_config_error():
            write_atomic(script, render_array(array))
        print_overruled(job, script)
        try:
            array_id = client.submit(script, after=dependency)
        except SlurmError as error:
            hint = f"{error.hint} {_submitted_so_far(sweep, submitted)}".lstrip()
            raise SlurmError(error.problem, value=error.value, hint=hint) from None
        submitted.append(array_id)
        for i, element in enumerate(elements):
            _record(element, f"{array_id}_{i}")
        yield array_id, elements


def _submitted_so_far(sweep: SweepDir, submitted: Sequence[str]) -> str:
    path = shlex.quote(str(sweep.path))
    if not submitted:
        return f"No run of {path} was submitted."
    arrays = f"{pluralize(len(submitted), 'array')} ({', '.join(submitted)})"
    return (
        f"Submitted before that: {arrays} of the sweep {path}. The other runs are "
        f"scheduled in `tahoe status {path}`: submit each with `tahoe resume RUN`, or cancel those "
        f"that were submitted with `tahoe cancel {path}`."
    )


def print_overruled(job: SbatchRequest, script: Path) -> None:
    """Print the options and variables that others replace."""
    for option, further in overruled(job):
        print(f"note: {further} of additional_parameters replaces {option}", file=sys.stderr)
    for name, value in client.ignored_variables(script).items():
        note = f"note: {name}={value} of this shell is not used: {script} sets the same option"
        print(note, file=sys.stderr)


def _record(submission: Submission, job_id: str) -> None:
    facts = {"submitted_s": time.time(), "num_steps": submission.num_steps}
    append_json_line(submission.run.jobs_file, {"slurm_job_id": job_id, **facts})


def write_script(run: RunDir, config: Config) -> SbatchRequest:
    """Copy the code, write the job script, and return its request."""
    limit_mb = config.slurm.code_snapshot_max_mb
    with run.lock():  # the files of a running attempt stay as they are
        run.stop_file.unlink(missing_ok=True)
        python_path = current_python_path() if limit_mb is None else snapshot_code(run, limit_mb)
        (run.path / "slurm").mkdir(exist_ok=True)
        job = job_request(run, config, python_path)
        write_atomic(run.job_script, render_job_script(job))
    return job


def render_job_script(job: SbatchRequest) -> str:
    """Render the job script of a run."""
    with as_config_error():
        return render_sbatch(
            job, worker="orchestrator.training.worker", hooks="orchestrator.jobs.job_hooks"
        )


def job_request(run: RunDir, config: Config, python_path: Sequence[str]) -> SbatchRequest:
    """Build the request for a run's job."""
    threads = config.runtime.threads_per_rank or config.slurm.cpus_per_task or 1
    environ = {"OMP_NUM_THREADS": str(threads)}
    if "SLURM_CONF" in os.environ:
        environ["SLURM_CONF"] = os.environ["SLURM_CONF"]
    options = {option.name: getattr(config.slurm, option.name) for option in fields(SbatchOptions)}
    with as_config_error():
        return SbatchRequest(
            f"tahoe {run.id}", str(run.path), sys.executable, tuple(python_path), environ, **options
        )


@contextmanager
def as_config_error() -> Iterator[None]:
    """Raise the ValueError of a script as an error of the config."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"slurm: {error}", hint="Nothing was submitted.") from None


def active_job(run: RunDir) -> client.QueuedJob | None:
    """Find the pending or running job of a run."""
    return queued_jobs([run]).get(run)


def queued_jobs(runs: Sequence[RunDir]) -> dict[RunDir, client.QueuedJob]:
    """Map runs to their pending or running jobs, with one query of Slurm."""
    submitted = {
        str(line["slurm_job_id"]): run for run in runs for line in read_json_lines(run.jobs_file)
    }
    jobs = client.queued_jobs(submitted)
    return {submitted[i]: job for i, job in jobs.items() if job.state not in client.ENDED}


def cancel(runs: Sequence[RunDir], *, now: bool) -> Iterator[str]:
    """Cancel the pending jobs of runs and stop the running ones; yield a message for each.

    Args:
        now: cancel running jobs too, which otherwise save before they end.
    """
    queued = queued_jobs(runs)
    if not queued:
        names = ", ".join(run.id for run in runs)
        raise RunError(f"no job of {names} is pending or running, so there is nothing to cancel")
    cancelled = {run: job for run, job in queued.items() if now or job.state == "PENDING"}
    client.cancel(job.job_id for job in cancelled.values())
    for job in cancelled.values():
        yield f"cancelled job {job.job_id} ({job.state.lower()})"
    for run, job in queued.items():
        if run not in cancelled:
            run.stop_file.parent.mkdir(exist_ok=True)
            run.stop_file.touch()
            yield f"job {job.job_id} saves and ends after its next step"


def is_active(run: RunDir) -> bool:
    """Check whether an attempt of a run is alive, or a job of it pending or running."""
    return run.is_alive or active_job(run) is not None


def check_not_queued(runs: Sequence[RunDir]) -> None:
    """Refuse to change or submit a run that has a pending or running job."""
    for run, job in queued_jobs(runs).items():
        raise RunError(
            f"job {job.job_id} of {run.id} is {job.state.lower()} already; a second would wait for "
            "it and then do nothing",
            value=job.job_id,
            hint=f"See `tahoe status {run.shell_path}`, or end it with "
            f"`tahoe cancel {run.shell_path}`.",
        )


def _active_job_id(run: RunDir) -> str | None:
    """Return the job to wait for; None if the run is finished."""
    run.read_config()  # raises if there is no run
    if run.is_finished:
        return None
    job = active_job(run)
    if job is None:
        raise RunError(
            f"--after {run.path}: that run is not finished, and no job of it is pending or "
            "running, so this one would wait for ever",
            value=run.path,
            hint=f"Submit it first: tahoe resume {run.shell_path}",
        )
    return job.job_id
