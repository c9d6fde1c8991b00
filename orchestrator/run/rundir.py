"""The run directory is the run: every path in it, and who may write it, is said here.

A run directory holds the frozen config, the code version, the log of attempts, the metrics, the
checkpoints and the MLflow run id. A worker is started with this one path; starting again what lies
there continues the run. It is a POSIX path that all nodes see, since logs and metrics are appended
to; checkpoints may go elsewhere (`checkpoint.url`).
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

import yaml

from data_sharding.errors import UserError
from data_sharding.io.atomic_file import write_atomic
from data_sharding.io.file_lock import NoLocksError, flock

_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class RunError(UserError):
    """A run directory cannot be used as asked; the message says what to do instead."""


class RunningError(RunError):
    """Another attempt holds the run."""


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def shell_path(self) -> str:
        """The path as a shell takes it, for commands in messages."""
        return shlex.quote(str(self.path))

    @property
    def config_file(self) -> Path:
        """The resolved config, frozen when the run was made."""
        return self.path / "config.yaml"

    @property
    def identity_file(self) -> Path:
        """Where the run comes from: overrides, git commit, package versions, data set."""
        return self.path / "run_info.json"

    @property
    def classes_file(self) -> Path:
        """The names of its classes, in the order of the network's outputs: a JSON list."""
        return self.path / "classes.json"

    @property
    def patch_file(self) -> Path:
        """What the checkout had beyond its commit when the run was made."""
        return self.path / "git.diff"

    @property
    def attempts_file(self) -> Path:
        """One JSON line when an attempt starts and one when it ends."""
        return self.path / "attempts.jsonl"

    @property
    def metrics_file(self) -> Path:
        """One JSON line a logged step; the truth that MLflow is a copy of."""
        return self.path / "metrics.jsonl"

    @property
    def system_dir(self) -> Path:
        """Where each node notes how it is doing; see `shipping.system_metrics`."""
        return self.path / "system_metrics"

    def system_file(self, node: str) -> Path:
        """One JSON line each time that a node was looked at."""
        return self.system_dir / f"{node}.jsonl"

    @property
    def evaluations_file(self) -> Path:
        """One JSON line for each time that `tahoe evaluate` judged the run."""
        return self.path / "evaluations.jsonl"

    @property
    def predictions_file(self) -> Path:
        """What the network answered to each validation sample at the end."""
        return self.path / "predictions.npz"

    @property
    def plots_dir(self) -> Path:
        """Plots of the finished run; see orchestrator.evaluation.run_plots."""
        return self.path / "plots"

    @property
    def outcome_file(self) -> Path:
        """What the ranks agreed on when they last stopped."""
        return self.path / "outcome.json"

    @property
    def mlflow_file(self) -> Path:
        """The MLflow run that shows this run, and the store it is in."""
        return self.path / "mlflow.json"

    @property
    def lock_file(self) -> Path:
        """Held by the attempt that is running."""
        return self.path / "lock"

    @property
    def job_script(self) -> Path:
        """What `tahoe submit` gave to Slurm; `sbatch` it by hand and it does the same."""
        return self.path / "job.sbatch"

    @property
    def jobs_file(self) -> Path:
        """One JSON line for each job that was submitted."""
        return self.path / "slurm_jobs.jsonl"

    @property
    def sweep_file(self) -> Path:
        """The sweep that the run was last submitted in; see orchestrator.run.sweepdir."""
        return self.path / "sweep.json"

    @property
    def code_dir(self) -> Path:
        """The code that jobs of this run execute."""
        return self.path / "code"

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints lie unless `checkpoint.url` says otherwise."""
        return self.path / "checkpoints"

    @property
    def init_file(self) -> Path:
        """The weights that the run begins with, where its config has `init_from`."""
        return self.path / "init.safetensors"

    @property
    def stop_file(self) -> Path:
        """Touch it to save and stop; works across users, containers and nodes."""
        return self.path / "control" / "stop"

    def log_dir(self, attempt: int) -> Path:
        """Where the ranks of an attempt write `rank-00000.log` and so on."""
        return self.path / "logs" / f"attempt-{attempt:04d}"

    def samples_file(self, attempt: int, rank: int) -> Path:
        """Where a rank records the samples it trained on, if asked to."""
        return self.log_dir(attempt) / f"samples-{rank:05d}.jsonl"

    def read_config(self) -> dict[str, Any]:
        """Return the frozen config as plain values.

        Raises:
            RunError: there is no run at this path, or its config cannot be read.
        """
        try:
            with reading(self.config_file):
                text = self.config_file.read_text()
            config = yaml.load(text, Loader=_SAFE_LOADER)  # noqa: S506
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"no run at {self.path}: {self.config_file.name} is missing there. Give the path "
                "of a run directory, as `tahoe train` prints it (by default under runs/)."
            ) from None
        except yaml.YAMLError as error:
            raise RunError(
                f"{self.config_file} is not YAML, so the run cannot be continued. Mend what was "
                f"edited, or restore the file from a backup: {error}"
            ) from None
        if not isinstance(config, dict):
            raise RunError(
                f"{self.config_file} does not hold a config, so the run cannot be continued. "
                "Restore the file from a backup."
            )
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Freeze the config."""
        write_atomic(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))

    def read_json(self, file: Path) -> dict[str, Any] | None:
        """Return a JSON file of this run, or None where it has not been written yet.

        Raises:
            RunError: it cannot be read.
        """
        try:
            with reading(file):
                value = json.loads(file.read_text())
                if not isinstance(value, dict):
                    raise ValueError("it holds no object")
        except FileNotFoundError:
            return None
        return value

    def write_json(self, file: Path, value: Mapping[str, Any]) -> None:
        """Write a JSON file of this run, whole or not at all."""
        write_atomic(file, json.dumps(value, indent=2) + "\n")

    @property
    def num_attempts(self) -> int:
        """The number of the attempt that was started last."""
        lines = read_json_lines(self.attempts_file)
        return max((line["attempt"] for line in lines if "started_s" in line), default=0)

    def begin_attempt(self, **facts: Any) -> int:
        """Record that an attempt starts and return its number, counted from 1.

        It is one that no attempt has had, though its line may have been lost in a crash.
        """
        with_logs = [int(path.name[-4:]) for path in self.path.glob("logs/attempt-[0-9]*")]
        attempt = max(self.num_attempts, *with_logs, 0) + 1
        host = socket.gethostname()
        line = {"attempt": attempt, "started_s": time.time(), "host": host, **facts}
        append_json_line(self.attempts_file, line)
        self.stop_file.parent.mkdir(exist_ok=True)  # so that `touch RUN/control/stop` is all
        return attempt

    def attempt_start_s(self, attempt: int) -> float:
        """Return when an attempt was begun; now if that is not known."""
        starts = (
            line["started_s"]
            for line in read_json_lines(self.attempts_file)
            if line.get("attempt") == attempt and "started_s" in line
        )
        return float(next(starts, time.time()))

    def end_attempt(self, attempt: int, **facts: Any) -> None:
        """Record how an attempt ended."""
        append_json_line(self.attempts_file, {"attempt": attempt, "ended_s": time.time(), **facts})

    def attempt_outcome(self, attempt: int) -> dict[str, Any]:
        """Return why and when an attempt's ranks ended of their own accord; {} if they did not."""
        outcome = self.read_json(self.outcome_file) or {}
        if outcome.get("attempt") != attempt:
            return {}
        return {"why": outcome.get("reason"), "trained_until_s": outcome.get("time_s")}

    @property
    def is_finished(self) -> bool:
        """Whether the last attempt ended with the outcome that nothing is left to do."""
        outcome = self.read_json(self.outcome_file) or {}
        is_last = outcome.get("attempt") == self.num_attempts  # an extension may have been killed
        return is_last and outcome["outcome"] == "finished"

    @property
    def is_alive(self) -> bool | None:
        """Whether an attempt holds the run now; None where its lock cannot be asked."""
        try:
            with self.lock_file.open() as file:
                return not flock(file, self.lock_file, shared=True)
        except FileNotFoundError:  # no attempt has been made
            return False
        except OSError:  # of somebody else who lets nobody read it, or without locks
            return None

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the run for one attempt; the lock dies with the last process that holds it.

        Yields the file descriptor of the lock: a process that inherits it holds the run as well.

        Raises:
            RunningError: another attempt is running.
            RunError: the file system has no locks.
        """
        with self.lock_file.open("a+") as file:
            deadline_s = time.monotonic() + 0.5  # who asks `is_alive` holds it for an instant
            while not (taken := hold(file)) and time.monotonic() < deadline_s:
                time.sleep(0.05)
            if not taken:
                file.seek(0)
                raise RunningError(
                    f"an attempt of {self.id} is running ({file.read().strip()}). Two attempts "
                    "would overwrite each other's checkpoints. Wait for it, or stop it: "
                    f"mkdir -p {self.shell_path}/control && touch {self.shell_path}/control/stop"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield file.fileno()


def hold(
    file: IO[str], *, wait: bool = False, instead: str = "another: runs_dir=DIR or run_dir=DIR"
) -> bool:
    """Hold a file that is open for writing alone; return whether that was possible.

    Raises:
        RunError: its file system has no locks.
    """
    try:
        return flock(file, Path(file.name), wait=wait, alternative=instead)
    except NoLocksError as error:
        raise RunError(str(error)) from None


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Say which file of a run cannot be read, and what to do about it.

    Raises:
        RunError: it cannot be read, or a ValueError said that it is damaged.
        FileNotFoundError, NotADirectoryError: it is not there.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(
            f"{file} cannot be read: {error.strerror}. Nothing is done with this run. Ask its "
            "owner, or restore the file from a backup."
        ) from error
    except ValueError as error:
        cure = _WITHOUT.get(file.name, "")
        raise RunError(
            f"{file} is damaged ({error}). Nothing is done with this run. Restore the file from a "
            f"backup{cure}."
        ) from None


_WITHOUT = {  # of what a run can do without
    "outcome.json": ", or remove it: the last attempt then counts as crashed",
    "mlflow.json": ", or remove it: the MLflow run is found by its tags",
}


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one line of JSON in a single write, so that concurrent writers do not mix.

    A line that a crash has torn is ended first: it must not swallow this one.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * is_torn + json.dumps(value).encode() + b"\n")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a line torn by a crash is passed over.

    Raises:
        RunError: it cannot be read.
    """
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
