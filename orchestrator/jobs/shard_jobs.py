"""Data sets that are written by Slurm jobs: an array of parts, and a job that publishes the set.

The jobs of a set have a directory as a run has one, under `runs_dir` and named after the set's URL:
the plan of the parts, the listed source, the scripts, a copy of the code, and the logs.
"""

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_sharding.io.atomic_file import write_atomic
from data_sharding.sources.base import Source
from data_sharding.writing.parts import PlannedParts, save_parts
from orchestrator.config.schema import Config
from orchestrator.jobs.submit import as_config_error, job_request, print_overruled
from orchestrator.launch.code_snapshot import current_python_path, snapshot_code
from orchestrator.redact import has_credentials, redact_urls
from orchestrator.run.rundir import RunDir, RunError, append_json_line, read_json_lines
from slurm import client
from slurm.errors import SlurmError
from slurm.part_jobs import one_process, render_parts

_WORKER = "orchestrator.jobs.shard_part"
_POLL_S = 2.0


@dataclass(frozen=True)
class ShardJobs:
    """The jobs that write the data set at one URL, whose path is absolute."""

    url: str
    directory: RunDir
    config: Config

    @classmethod
    def of(cls, config: Config, url: str) -> "ShardJobs":
        """Return the jobs of a set, whether or not there are any yet."""
        if has_credentials(url):
            raise RunError(
                f"{redact_urls(url)} has a password or a signature, which the jobs' files would "
                "show; nothing was submitted",
                value=redact_urls(url),
                hint="Give the credentials to fsspec by the environment or its config files.",
            )
        name = re.sub(r"[^\w.-]", "_", url.rstrip("/").rpartition("/")[2], flags=re.ASCII)
        digest = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        return cls(url, RunDir(Path(config.runs_dir) / f"shards-{name}-{digest}"), config)

    def active(self) -> dict[str, client.QueuedJob]:
        """Return the jobs that are pending or running, by id."""
        ids = [str(line["slurm_job_id"]) for line in read_json_lines(self.directory.jobs_file)]
        queued = client.queued_jobs(ids)
        return {i: job for i, job in queued.items() if job.state not in client.ENDED}

    def submit(self, plan: PlannedParts, source: Source) -> tuple[str, str]:
        """Submit the parts of a set and the job that publishes it; return the ids of both."""
        run = self.directory
        for old in (run.path / "logs", run.path / "slurm"):
            shutil.rmtree(old, ignore_errors=True)
        (run.path / "slurm").mkdir(parents=True)
        save_parts(plan, source, run.path)
        parts_script, end_script = self._write_scripts(plan.num_parts)
        array = client.submit(parts_script)
        for part in range(plan.num_parts):
            append_json_line(run.jobs_file, {"slurm_job_id": f"{array}_{part}"})
        try:
            end = client.submit(end_script, after_end=array)
        except SlurmError:
            client.cancel([array])
            raise
        append_json_line(run.jobs_file, {"slurm_job_id": end})
        return array, end

    def _write_scripts(self, num_parts: int) -> Iterator[Path]:
        """Write the script of the array and that of the last job."""
        run, slurm = self.directory, self.config.slurm
        limit_mb = slurm.code_snapshot_max_mb
        code = current_python_path() if limit_mb is None else snapshot_code(run, limit_mb)
        job = one_process(job_request(run, self.config, code))
        for name, number in (("parts", num_parts), ("end", None)):
            script = run.path / f"{name}.sbatch"
            with as_config_error():
                text = render_parts(
                    job,
                    worker=_WORKER,
                    num_parts=number,
                    max_restarts=slurm.max_consecutive_failures,
                )
            write_atomic(script, text)
            if number is not None:
                print_overruled(job, script)
            yield script

    def wait(self, on_poll: Callable[[], None]) -> None:
        """Wait until none of the jobs is pending or running."""
        while self._may_be_active():
            on_poll()
            time.sleep(_POLL_S)
        on_poll()

    def _may_be_active(self) -> bool:
        try:
            return bool(self.active())
        except SlurmError as error:  # the jobs go on all the same
            print(f"warning: {error}", file=sys.stderr)
            return True

    def errors(self) -> list[str]:
        """Return the errors that logs of the jobs end with, each once."""
        errors = dict[str, None]()
        for log in sorted(self.directory.path.glob("logs/*/rank-*.log")):
            lines = log.read_text(errors="replace").splitlines()
            errors |= dict.fromkeys(line for line in lines[-1:] if line.startswith("error: "))
        return [*errors]
