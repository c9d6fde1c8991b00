"""A run directory -> a job of Slurm: the script, what was submitted, and what becomes of it."""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.launch.code_snapshot import current_python_path, snapshot_code
from orchestrator.number_format import pluralize
from orchestrator.run.rundir import (
    RunDir,
    RunError,
    append_json_line,
    read_json_lines,
    write_atomic,
)
from orchestrator.run.sweepdir import SweepDir
from slurm import client
from slurm.errors import SlurmError
from slurm.job_array import JobArray, group_compatible, render_array
from slurm.sbatch import SbatchOptions, SbatchRequest, overruled, render_sbatch


@dataclass(frozen=True)
class Submission:
    """A run that is to be a job, with the number of its steps for those who watch it."""

    run: RunDir
    config: Config
    num_steps: int


def submit(submission: Submission, *, after: RunDir | None = None) -> str:
    """Write the job script of a run, submit it, and return the job's id.

    Args:
        after: a run that must have finished before.

    Raises:
        RunError: an attempt of this run is alive, or `after` has no job.
        ConfigError: the config cannot stand in a script.
        SlurmError: Slurm does not take the job.
    """
    dependency = None if after is None else _active_job_id(after)
    job = write_script(submission.run, submission.config)
    _say_what_wins(job, submission.run.job_script)
    job_id = client.submit(submission.run.job_script, after=dependency)
    _note(submission, job_id)
    return job_id


def submit_arrays(
    sweep: SweepDir, members: Sequence[Submission], *, after: RunDir | None = None
) -> Iterator[tuple[str, list[Submission]]]:
    """Submit the runs of a sweep; yield each array's id with its runs, element 0 first.

    Runs that ask Slurm for different things (nodes, GPUs, a limit) cannot be one array.

    Raises:
        RunError, ConfigError: as for `submit`; nothing has been submitted.
        SlurmError: Slurm does not take an array; those before it stay submitted.
    """
    dependency = None if after is None else _active_job_id(after)
    jobs = [write_script(member.run, member.config) for member in members]
    submitted: list[str] = []
    for indices in group_compatible(jobs):
        some = [members[i] for i in indices]
        number = sweep.new_array()
        runs_file, file = sweep.array_runs(number), sweep.array_script(number)
        write_atomic(runs_file, "".join(f"{member.run.path}\n" for member in some))
        job = jobs[indices[0]]
        array = JobArray(f"tahoe {sweep.id}", str(sweep.path), runs_file.name, job, len(some))
        with _as_config_error():
            write_atomic(file, render_array(array))
        _say_what_wins(job, file)
        try:
            array_id = client.submit(file, after=dependency)
        except SlurmError as error:
            raise SlurmError(f"{error} {_so_far(sweep, submitted)}") from None
        submitted.append(array_id)
        for i, member in enumerate(some):
            _note(member, f"{array_id}_{i}")
        yield array_id, some


def _so_far(sweep: SweepDir, submitted: Sequence[str]) -> str:
    """Say what has become of a sweep of which Slurm does not take another array."""
    place = shlex.quote(str(sweep.path))
    if not submitted:
        return f"No run of {place} was submitted."
    arrays = f"{pluralize(len(submitted), 'array')} ({', '.join(submitted)})"
    return (
        f"Submitted before that: {arrays} of the sweep {place}. The other runs are "
        f"scheduled in `tahoe status {place}`: submit each with `tahoe resume RUN`, or end those "
        f"that were submitted with `tahoe cancel {place}`."
    )


def _say_what_wins(job: SbatchRequest, script: Path) -> None:
    """Say which of several words for the same thing Slurm is given."""
    for ours, further in overruled(job):
        print(f"note: {further} of additional_parameters replaces {ours}", file=sys.stderr)
    for name, value in client.ignored_variables(script).items():
        print(f"note: {name}={value} of this shell is not used: {script} says it", file=sys.stderr)


def _note(submission: Submission, job_id: str) -> None:
    line = {
        "slurm_job_id": job_id,
        "submitted_s": time.time(),
        "num_steps": submission.num_steps,
    }
    append_json_line(submission.run.jobs_file, line)


def write_script(run: RunDir, config: Config) -> SbatchRequest:
    """Copy the code and write the job script; return the job.

    Raises:
        RunError: an attempt of this run is alive, or the code is larger than allowed.
        ConfigError: a value cannot stand in a script.
    """
    limit_mb = config.slurm.code_snapshot_max_mb
    with run.lock():  # what an attempt that is running reads is not touched
        run.stop_file.unlink(missing_ok=True)
        python_path = current_python_path() if limit_mb is None else snapshot_code(run, limit_mb)
        (run.path / "slurm").mkdir(exist_ok=True)
        job = job_request(run, config, python_path)
        write_atomic(run.job_script, render_job_script(job))
    return job


def render_job_script(job: SbatchRequest) -> str:
    """Return the job script of a run.

    Raises:
        ConfigError: a value of `slurm` cannot stand in a script.
    """
    with _as_config_error():
        return render_sbatch(
            job, worker="orchestrator.training.worker", hooks="orchestrator.jobs.job_hooks"
        )


def job_request(run: RunDir, config: Config, python_path: Sequence[str]) -> SbatchRequest:
    """Build the request for a run's job.

    Raises:
        ConfigError: a value of `slurm` makes no job.
    """
    threads = config.runtime.threads_per_rank or config.slurm.cpus_per_task or 1
    environ = {"OMP_NUM_THREADS": str(threads)}
    if "SLURM_CONF" in os.environ:
        environ["SLURM_CONF"] = os.environ["SLURM_CONF"]
    options = {option.name: getattr(config.slurm, option.name) for option in fields(SbatchOptions)}
    with _as_config_error():
        return SbatchRequest(
            f"tahoe {run.id}", str(run.path), sys.executable, tuple(python_path), environ, **options
        )


@contextmanager
def _as_config_error() -> Iterator[None]:
    """Say of a value that cannot be in a script where it comes from."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"slurm: {error}. Nothing was submitted.") from None


def active_job(run: RunDir) -> client.QueuedJob | None:
    """Return the job of a run that waits or runs, or None.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    return queued_jobs([run]).get(run)


def queued_jobs(runs: Sequence[RunDir]) -> dict[RunDir, client.QueuedJob]:
    """Return the jobs that wait or run, by their runs; Slurm is asked once.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    submitted = {
        str(line["slurm_job_id"]): run for run in runs for line in read_json_lines(run.jobs_file)
    }
    known = client.queued_jobs(submitted)
    return {submitted[i]: job for i, job in known.items() if job.state not in client.ENDED}


def cancel(runs: Sequence[RunDir], *, now: bool) -> Iterator[str]:
    """End the jobs of runs: waiting ones at once, running ones when they have saved; say of each.

    Args:
        now: do not let them save.

    Raises:
        RunError: no job of these runs waits or runs.
    """
    queued = queued_jobs(runs)
    if not queued:
        names = ", ".join(run.id for run in runs)
        raise RunError(f"no job of {names} waits or runs, so there is nothing to cancel.")
    ended = {r: job for r, job in queued.items() if now or job.state == "PENDING"}
    client.cancel(job.job_id for job in ended.values())
    for job in ended.values():
        yield f"cancelled job {job.job_id} ({job.state.lower()})"
    for run, job in queued.items():
        if run not in ended:
            run.stop_file.parent.mkdir(exist_ok=True)
            run.stop_file.touch()
            yield f"job {job.job_id} saves and ends after its next step"


def is_active(run: RunDir) -> bool:
    """Whether an attempt of a run is alive, or a job of it waits or runs.

    Raises:
        SlurmError: a job was submitted, and Slurm cannot be asked.
    """
    return run.is_alive or active_job(run) is not None


def check_not_queued(runs: Sequence[RunDir]) -> None:
    """Refuse to change or submit a run that a job waits for, or is at.

    Raises:
        RunError: there is one.
        SlurmError: a job was submitted, and Slurm cannot be asked.
    """
    for run, job in queued_jobs(runs).items():
        raise RunError(
            f"job {job.job_id} of {run.id} is {job.state.lower()} already. A second would wait for "
            f"it and then do nothing. Look with `tahoe status {run.shell_path}`, or end it with "
            f"`tahoe cancel {run.shell_path}`."
        )


def _active_job_id(run: RunDir) -> str | None:
    run.read_config()  # says so if there is no run
    if run.is_finished:
        return None
    job = active_job(run)
    if job is None:
        raise RunError(
            f"--after {run.path}: that run is not finished, and no job of it waits or runs, so "
            f"this one would wait for ever. Submit it first: tahoe resume {run.shell_path}"
        )
    return job.job_id
