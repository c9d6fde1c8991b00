"""Start the ranks of an attempt as processes of this machine, watch them, and report the outcome.

The ranks run in sessions of their own: Ctrl-C reaches the launcher alone, which lets the ranks save
and stop. They hold the read end of a pipe whose write end closes with the launcher, so a killed
launcher stops them the same way.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Self

from orchestrator.config.schema import Config
from orchestrator.launch.progress_bar import ProgressBar
from orchestrator.launch.ranks.rank_process import ForkedRank, SpawnedRank, rank_environ
from orchestrator.launch.ranks.rank_servers import RankServers
from orchestrator.run.notify import notify_end
from orchestrator.run.outcome import CRASHED, ExitCode
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir

_POLL_S = 0.2


def run_attempt(
    run: RunDir,
    config: Config,
    plan: Plan,
    worker: str = "orchestrator.training.worker",
    servers: RankServers | None = None,
) -> int:
    """Run one attempt and return its exit code: 0, 75, 93, or 1 for a crash.

    Args:
        worker: the module that each rank runs.
        servers: the processes that the ranks are forked from; without any, each is started.
    """
    with _InterruptCounter() as interrupts:
        with run.lock() as lock:
            attempt = run.begin_attempt(
                launcher="local", world_size=plan.world_size, num_steps=plan.num_steps
            )
            run.stop_file.unlink(missing_ok=True)
            ranks = _RankProcesses.start(run, config, attempt, lock, servers or worker)
            with ProgressBar(run, plan, ranks.log_file(0)) as progress_bar:
                ranks.wait(progress_bar, interrupts)
            exit_code = _report_outcome(run, attempt, ranks)
            run.end_attempt(
                attempt,
                exit_code=exit_code,
                rank_exit_codes=ranks.exit_codes,
                **run.attempt_outcome(attempt),
            )
        reason = ranks.how_it_failed
        notify_end(run, config.notify, attempt, exit_code, reason, log=_warn)
    return exit_code


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _report_outcome(run: RunDir, attempt: int, ranks: "_RankProcesses") -> int:
    """Print the outcome of an attempt and the next command; return the exit code."""
    continue_with = f"with:\n  tahoe resume {run.shell_path}"
    outcome = run.read_json(run.outcome_file) or {}
    if outcome.get("attempt") == attempt:
        if outcome["outcome"] == "finished":
            return ExitCode.FINISHED
        if outcome["outcome"] == "stopped":
            print(f"{outcome['reason']}. Continue {continue_with}")
            return ExitCode.STOPPED
        print(f"error: {outcome['reason']}", file=sys.stderr)
        return ExitCode.FAILED_PERMANENTLY
    if ranks.was_killed:
        print(f"quit without saving. Continue from the last checkpoint {continue_with}")
        return 128 + signal.SIGINT
    rank, code = ranks.first_failure()
    if ranks.was_stopped and code == -signal.SIGTERM:
        print(f"stopped before training began. Continue {continue_with}")
        return ExitCode.STOPPED
    log_file = ranks.log_file(rank)
    print(
        f"error: {ranks.how_it_failed}. The last lines of {log_file}:\n{_tail(log_file)}\n"
        f"Continue from the last checkpoint {continue_with}",
        file=sys.stderr,
    )
    return ExitCode.FAILED_PERMANENTLY if code == ExitCode.FAILED_PERMANENTLY else CRASHED


@dataclass
class _RankProcesses:
    """The processes of an attempt."""

    processes: list[SpawnedRank | ForkedRank]
    log_dir: Path
    grace_period_s: float
    failures: list[int] = field(default_factory=list)  # ranks, in the order they failed
    was_stopped: bool = False
    was_killed: bool = False
    deadline_s: float = float("inf")

    @classmethod
    def start(
        cls, run: RunDir, config: Config, attempt: int, lock: int, worker: str | RankServers
    ) -> "_RankProcesses":
        log_dir = run.log_dir(attempt)
        log_dir.mkdir(parents=True)
        ranks = cls([], log_dir, config.launcher.grace_period_s)
        environ = {"MASTER_PORT": str(free_port()), "TAHOE_ATTEMPT": str(attempt)}
        for rank in range(config.launcher.nproc_per_node):
            with ranks.log_file(rank).open("ab") as log:
                process = _start_rank(run, config, rank, environ, log, lock, worker)
            ranks.processes.append(process)
        return ranks

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.returncode for process in self.processes]

    def log_file(self, rank: int) -> Path:
        return self.log_dir / f"rank-{rank:05d}.log"

    def wait(self, progress_bar: ProgressBar, interrupts: "_InterruptCounter") -> None:
        """Wait until all ranks have ended; kill those that cannot continue without another."""
        running = {p.open_exit_fd(): rank for rank, p in enumerate(self.processes)}
        while running:
            ended, _, _ = select.select(list(running), [], [], _POLL_S)
            for exit_fd in ended:
                if self.processes[running[exit_fd]].poll() is not None:
                    os.close(exit_fd)
                    self._on_exit(running.pop(exit_fd))
            if interrupts.count >= 1 and not self.was_stopped:
                self._request_stop()
            if interrupts.count >= 2 and not self.was_killed:
                self.was_killed = True
                self._send(signal.SIGKILL)
            if time.monotonic() > self.deadline_s:
                self._send(signal.SIGKILL)
            progress_bar.update()

    def first_failure(self) -> tuple[int, int]:
        rank = self.failures[0] if self.failures else 0
        return rank, self.processes[rank].wait()

    @property
    def how_it_failed(self) -> str:
        rank, code = self.first_failure()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"rank {rank} ended with {how}"

    def _on_exit(self, rank: int) -> None:
        with self.processes[rank] as process:  # closes its stdin
            code = process.wait()
        if code not in tuple(ExitCode):
            self.failures.append(rank)
            self._send(signal.SIGKILL)  # the others would wait for it
        elif self.deadline_s == float("inf"):
            self.deadline_s = time.monotonic() + self.grace_period_s + 60

    def _request_stop(self) -> None:
        print("stopping: the ranks save after this step. Ctrl-C again quits at once.", flush=True)
        self.was_stopped = True
        self.deadline_s = time.monotonic() + self.grace_period_s
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _start_rank(
    run: RunDir,
    config: Config,
    rank: int,
    environ: Mapping[str, str],
    log: IO[bytes],
    lock: int,
    worker: str | RankServers,
) -> SpawnedRank | ForkedRank:
    """Start a rank, which holds the run: if the launcher is killed, it saves and ends."""
    if isinstance(worker, RankServers):
        return worker.start_rank(run, config, rank, environ, (log, lock))
    return SpawnedRank(
        [sys.executable, "-m", worker, str(run.path)],
        env={**os.environ, **rank_environ(config, rank), **environ},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[lock],
        start_new_session=True,
    )


class _InterruptCounter:
    """Count Ctrl-C and SIGTERM; the signal handler does nothing else."""

    count = 0

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(file: Path, num_lines: int = 20) -> str:
    lines = file.read_text(errors="replace").splitlines()[-num_lines:]
    return "\n".join(f"  {line}" for line in lines)
