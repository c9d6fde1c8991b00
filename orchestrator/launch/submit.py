"""A run directory -> a job of Slurm: the script, what was submitted, and what becomes of it."""

import os
import sys
import time
from collections.abc import Sequence

from orchestrator.config import ConfigError
from orchestrator.launch.snapshot import in_place, snapshot
from orchestrator.rundir import RunDir, RunError, append_json_line, read_json_lines, write_atomic
from orchestrator.schema import Config
from slurm import client
from slurm.job import Job, render


def submit(run: RunDir, config: Config, num_steps: int, *, after: RunDir | None = None) -> str:
    """Write the job script of a run, submit it, and return the job's id.

    Args:
        num_steps: of the run, for those who watch it.
        after: a run that must have finished before.

    Raises:
        RunError: an attempt of this run is alive, or `after` has no job.
        ConfigError: the config cannot stand in a script.
        SlurmError: Slurm does not take the job.
    """
    dependency = None if after is None else _live_job(after)
    with run.lock():  # what an attempt that is running reads is not touched
        run.stop_file.unlink(missing_ok=True)
        write_script(run, config)
    job_id = client.submit(run.job_script, after=dependency)
    line = {"slurm_job_id": job_id, "submitted_s": time.time(), "num_steps": num_steps}
    append_json_line(run.jobs_file, line)
    return job_id


def write_script(run: RunDir, config: Config) -> None:
    """Copy the code and write the job script.

    Raises:
        RunError: the code is larger than allowed.
        ConfigError: a value cannot stand in a script.
    """
    limit_mb = config.cluster.snapshot_mb
    python_path = in_place() if limit_mb is None else snapshot(run, limit_mb)
    (run.path / "slurm").mkdir(exist_ok=True)
    write_atomic(run.job_script, script(run, config, python_path))


def script(run: RunDir, config: Config, python_path: Sequence[str]) -> str:
    """Return the job script of a run.

    Raises:
        ConfigError: a value of `cluster` cannot stand in a script.
    """
    cluster, container = config.cluster, config.cluster.container
    threads = cluster.threads_per_rank or cluster.cpus_per_task or 1
    environ = {"OMP_NUM_THREADS": str(threads)}
    if "SLURM_CONF" in os.environ:
        environ["SLURM_CONF"] = os.environ["SLURM_CONF"]
    if container:
        inside = {
            "container_image": container.image,
            "container_runtime": container.runtime,
            "container_python": container.python,
            "container_mounts": container.mounts,
        }
    try:
        job = Job(
            name=f"tahoe {run.id}",
            run_dir=str(run.path),
            python=sys.executable,
            python_path=tuple(python_path),
            nodes=cluster.nodes,
            tasks_per_node=cluster.ranks_per_node,
            gpus_per_node=cluster.gpus_per_node,
            cpus_per_task=cluster.cpus_per_task,
            mem_gb=cluster.mem_gb,
            timeout_min=cluster.timeout_min,
            partition=cluster.partition,
            account=cluster.account,
            qos=cluster.qos,
            constraint=cluster.constraint,
            exclude=cluster.exclude,
            signal_lead_s=cluster.signal_lead_s,
            modules=cluster.modules,
            setup=cluster.setup,
            srun_args=cluster.srun_args,
            additional_parameters=cluster.additional_parameters,
            environ=environ,
            **(inside if container else {}),  # type: ignore[arg-type]
        )
        return render(job)
    except ValueError as error:
        raise ConfigError(f"cluster: {error}. Nothing was submitted.") from None


def queued_job(run: RunDir) -> client.QueuedJob | None:
    """Return the job of a run that waits or runs, or None.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    submitted = [str(line["slurm_job_id"]) for line in read_json_lines(run.jobs_file)]
    known = client.jobs(submitted)
    alive = [job for job in known.values() if job.state not in client.ENDED]
    return alive[-1] if alive else None


def cancel(run: RunDir, *, now: bool) -> str:
    """End a run's job: a waiting one at once, a running one when it has saved; say what was done.

    Args:
        now: do not let it save.

    Raises:
        RunError: no job of this run waits or runs.
    """
    job = queued_job(run)
    if job is None:
        raise RunError(f"no job of {run.id} waits or runs, so there is nothing to cancel.")
    if now or job.state == "PENDING":
        client.cancel(job.job_id)
        return f"cancelled job {job.job_id} ({job.state.lower()})"
    run.stop_file.parent.mkdir(exist_ok=True)
    run.stop_file.touch()
    return f"job {job.job_id} saves and ends after its next step"


def is_going_on(run: RunDir) -> bool:
    """Whether an attempt of a run is alive, or a job of it waits or runs.

    Raises:
        SlurmError: a job was submitted, and Slurm cannot be asked.
    """
    return run.is_alive or queued_job(run) is not None


def check_not_queued(run: RunDir) -> None:
    """Refuse to change or submit a run that a job waits for, or is at.

    Raises:
        RunError: there is one.
        SlurmError: a job was submitted, and Slurm cannot be asked.
    """
    job = queued_job(run)
    if job:
        raise RunError(
            f"job {job.job_id} of {run.id} is {job.state.lower()} already. A second would wait for "
            f"it and then do nothing. Look with `tahoe status {run.quoted}`, or end it with "
            f"`tahoe cancel {run.quoted}`."
        )


def _live_job(run: RunDir) -> str | None:
    run.read_config()  # says so if there is no run
    if run.is_finished:
        return None
    job = queued_job(run)
    if job is None:
        raise RunError(
            f"--after {run.path}: that run is not finished, and no job of it waits or runs, so "
            f"this one would wait for ever. Submit it first: tahoe resume {run.quoted}"
        )
    return job.job_id
