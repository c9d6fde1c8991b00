"""The run directory is the run: its paths, its attempts and its lock.

It has the frozen config, the code version, the log of attempts, the metrics, the checkpoints and
the MLflow run id. A worker is started with this path alone; starting the directory again continues
the run. It is a POSIX path that all nodes see, since logs and metrics are appended to; checkpoints
may be elsewhere (`checkpoint.url`).
"""

import json
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import yaml

from data_sharding.errors import UserError
from data_sharding.io.atomic_file import write_atomic
from data_sharding.io.file_lock import NoLocksError, flock

_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class RunError(UserError):
    """A run directory cannot be used as requested."""


class RunningError(RunError):
    """Another attempt holds the run."""


class FileIn:
    """A path in a run or sweep directory."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, directory: Any, kind: type) -> Path:
        return Path(directory.path, *self._names)


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def shell_path(self) -> str:
        """The path, quoted for a shell command in a message."""
        return shlex.quote(str(self.path))

    config_file = FileIn("config.yaml")  # the resolved config, frozen when the run is created
    identity_file = FileIn("run_info.json")  # overrides, git commit, package versions, data set
    # The names of the classes in the order of the outputs: a JSON list.
    classes_file = FileIn("classes.json")
    patch_file = FileIn("git.diff")  # uncommitted changes of the checkout
    # One JSON line at the start of an attempt, and one at its end.
    attempts_file = FileIn("attempts.jsonl")
    metrics_file = FileIn("metrics.jsonl")  # one JSON line for each logged step; MLflow has a copy
    # System metrics of each node; see `shipping.system_metrics`.
    system_dir = FileIn("system_metrics")
    # The times of each node at each log, if there are several; see `run.node_times`.
    node_times_file = FileIn("node_times.jsonl")
    evaluations_file = FileIn("evaluations.jsonl")  # one JSON line for each `tahoe evaluate`
    predictions_file = FileIn("predictions.npz")  # the final predictions for the validation split
    plots_dir = FileIn("plots")  # plots of the finished run; see orchestrator.evaluation.run_plots
    # What their drawing prints, and its lock; see `shipping.run_plots`.
    plots_log = FileIn("logs", "plots.log")
    # Reports and traces of profiled steps, of each attempt.
    profile_dir = FileIn("profile")
    outcome_file = FileIn("outcome.json")  # the outcome that the ranks last agreed on
    mlflow_file = FileIn("mlflow.json")  # the MLflow run and its store
    lock_file = FileIn("lock")  # held by the running attempt
    # The sbatch script of `tahoe submit`; may be submitted by hand.
    job_script = FileIn("job.sbatch")
    jobs_file = FileIn("slurm_jobs.jsonl")  # one JSON line for each submitted job
    # The sweep of the last submission; see orchestrator.run.sweepdir.
    sweep_file = FileIn("sweep.json")
    code_dir = FileIn("code")  # the code snapshot that jobs run
    checkpoints_dir = FileIn("checkpoints")  # checkpoints, unless `checkpoint.url` is set
    init_file = FileIn("init.safetensors")  # the initial weights, if the config has `init_from`
    # Touch it to save and stop; works across users, containers and nodes.
    stop_file = FileIn("control", "stop")

    def system_file(self, node: str) -> Path:
        return self.system_dir / f"{node}.jsonl"

    def log_dir(self, attempt: int) -> Path:
        """Return the log directory of an attempt: `rank-00000.log` and so on."""
        return self.path / "logs" / f"attempt-{attempt:04d}"

    def samples_file(self, attempt: int, rank: int) -> Path:
        """Return the file of the sample ids of a rank (`logging.log_sample_ids`)."""
        return self.log_dir(attempt) / f"samples-{rank:05d}.jsonl"

    def read_config(self) -> dict[str, Any]:
        """Read the frozen config as plain values."""
        try:
            with reading(self.config_file):
                text = self.config_file.read_text()
            config = yaml.load(text, Loader=_SAFE_LOADER)  # noqa: S506
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"no run at {self.path}: {self.config_file.name} is missing",
                value=self.path,
                hint="Give a run directory, as `tahoe train` prints it (by default under runs/).",
            ) from None
        except yaml.YAMLError as error:
            raise RunError(
                f"{self.config_file} is not YAML, so the run cannot be continued: {error}",
                value=self.config_file,
                hint="Undo the edit, or restore the file from a backup.",
            ) from None
        if not isinstance(config, dict):
            raise RunError(
                f"{self.config_file} has no mapping, so the run cannot be continued",
                value=self.config_file,
                hint="Restore the file from a backup.",
            )
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Freeze the config."""
        write_atomic(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))

    def read_json(self, file: Path) -> dict[str, Any] | None:
        """Read a JSON file of this run; return None if it does not exist yet."""
        try:
            with reading(file):
                value = json.loads(file.read_text())
                if not isinstance(value, dict):
                    raise ValueError("not a JSON object")
        except FileNotFoundError:
            return None
        return value

    def write_json(self, file: Path, value: Mapping[str, Any]) -> None:
        """Write a JSON file of this run atomically."""
        write_atomic(file, json.dumps(value, indent=2) + "\n")

    @property
    def num_attempts(self) -> int:
        """Number of the last attempt; 0 before the first."""
        lines = read_json_lines(self.attempts_file)
        return max((line["attempt"] for line in lines if "started_s" in line), default=0)

    def begin_attempt(self, **facts: Any) -> int:
        """Record the start of an attempt and return its number, counted from 1.

        The number is new even if a crash lost the line of an earlier attempt: its logs remain.
        """
        with_logs = [int(path.name[-4:]) for path in self.path.glob("logs/attempt-[0-9]*")]
        attempt = max(self.num_attempts, *with_logs, 0) + 1
        host = socket.gethostname()
        line = {"attempt": attempt, "started_s": time.time(), "host": host, **facts}
        append_json_line(self.attempts_file, line)
        self.stop_file.parent.mkdir(exist_ok=True)  # so that `touch RUN/control/stop` is all
        return attempt

    def attempt_start_s(self, attempt: int) -> float:
        """Return the start time of an attempt; now if it is unknown."""
        starts = (
            line["started_s"]
            for line in read_json_lines(self.attempts_file)
            if line.get("attempt") == attempt and "started_s" in line
        )
        return float(next(starts, time.time()))

    def end_attempt(self, attempt: int, **facts: Any) -> None:
        """Record the end of an attempt."""
        append_json_line(self.attempts_file, {"attempt": attempt, "ended_s": time.time(), **facts})

    def attempt_outcome(self, attempt: int) -> dict[str, Any]:
        """Return the reason and time with which the ranks ended an attempt, or {}."""
        outcome = self.read_json(self.outcome_file) or {}
        if outcome.get("attempt") != attempt:
            return {}
        return {"why": outcome.get("reason"), "trained_until_s": outcome.get("time_s")}

    @property
    def is_finished(self) -> bool:
        """True if the last attempt finished the training."""
        outcome = self.read_json(self.outcome_file) or {}
        is_last = outcome.get("attempt") == self.num_attempts  # an extension may have been killed
        return is_last and outcome["outcome"] == "finished"

    @property
    def is_alive(self) -> bool | None:
        """True if an attempt is running; None if the lock cannot be read."""
        try:
            with self.lock_file.open() as file:
                return not flock(file, self.lock_file, shared=True)
        except FileNotFoundError:  # no attempt yet
            return False
        except OSError:  # no permission, or a file system without locks
            return None

    @contextmanager
    def lock(self, wait_s: float = 0.5) -> Iterator[int]:
        """Lock the run for one attempt, or raise RunningError.

        Args:
            wait_s: the time to wait for another holder; `is_alive` holds it for an instant.

        Yields the file descriptor: a process that inherits it holds the lock as well, and the lock
        is released when the last of them ends.
        """
        with self.lock_file.open("a+") as file:
            deadline_s = time.monotonic() + wait_s
            while not (taken := hold(file)) and time.monotonic() < deadline_s:
                time.sleep(0.05)
            if not taken:
                file.seek(0)
                control = f"{self.shell_path}/control"
                raise RunningError(
                    f"an attempt of {self.id} is running ({file.read().strip()}), and two attempts "
                    "would overwrite each other's checkpoints",
                    value=self.path,
                    hint=f"Wait for it, or stop it: mkdir -p {control} && touch {control}/stop",
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield file.fileno()


def original_of(run: RunDir, noted: str | None) -> Path | None:
    """Return the path of the run that this one is a copy of; None if it was moved.

    Args:
        noted: the path of the run according to its MLflow run.
    """
    uid = (run.read_json(run.identity_file) or {}).get("uid")
    if not noted or not uid:
        return None
    other = RunDir(Path(noted))
    if (other.read_json(other.identity_file) or {}).get("uid") != uid or _is_same(run, other):
        return None
    return other.path


def assign_new_identity(run: RunDir, original: Path) -> None:
    """Give a copy a new identity, which records its original."""
    identity = run.read_json(run.identity_file) or {}
    copied = {"path": str(original), "uid": identity.get("uid")}
    run.mlflow_file.unlink(missing_ok=True)
    run.write_json(run.identity_file, {**identity, "uid": uuid4().hex, "copied_from": copied})


def _is_same(run: RunDir, other: RunDir) -> bool:
    """Check whether two paths are one directory, perhaps mounted twice."""
    file, other_file = run.identity_file.stat(), other.identity_file.stat()
    return (file.st_ino, file.st_mtime_ns) == (other_file.st_ino, other_file.st_mtime_ns)


def hold(
    file: IO[str], *, wait: bool = False, instead: str = "another: runs_dir=DIR or run_dir=DIR"
) -> bool:
    """Lock a file that is open for writing; return False if another process holds the lock."""
    try:
        return flock(file, Path(file.name), wait=wait, alternative=instead)
    except NoLocksError as error:
        raise RunError(str(error)) from None


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Convert OSError and ValueError to a RunError that names the file; a missing file stays."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(
            f"{file} cannot be read: {error.strerror}",
            value=file,
            hint="Ask its owner, or restore the file from a backup. The run is unchanged.",
        ) from error
    except ValueError as error:
        alternative = _IF_REMOVED.get(file.name, "")
        raise RunError(
            f"{file} is damaged ({error})",
            value=file,
            hint=f"Restore the file from a backup{alternative}. The run is unchanged.",
        ) from None


_IF_REMOVED = {
    "outcome.json": ", or remove it: the last attempt then counts as crashed",
    "mlflow.json": ", or remove it: the MLflow run is found by its tags",
}


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line of JSON in a single write, so that lines of concurrent writers do not mix.

    If a crash left the last line incomplete, it is ended first.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * is_torn + json.dumps(value).encode() + b"\n")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a line that a crash left incomplete is skipped."""
    with reading(path):
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    with suppress(ValueError):
                        value = json.loads(line)
                        if isinstance(value, dict):
                            yield value
