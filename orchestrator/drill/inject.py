"""Run one attempt of a drill, and inject its faults from a thread of the launcher."""

import io
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from data_sharding.io import filesystem
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.drill.faults import AttemptPlan, Fault
from orchestrator.drill.faulty_filesystem import DIRECTORY
from orchestrator.drill.mlflow_proxy import FaultQueue
from orchestrator.launch.local_launcher import run_attempt
from orchestrator.number_format import pluralize
from orchestrator.run.metric_stream import read_records
from orchestrator.run.outcome import ExitCode
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, read_json_lines

FAULTY_WORKER = "orchestrator.drill.faulty_worker"
_POLL_S = 0.01
_PAUSE_S = 0.3
_MIN_CHECKPOINTS = 2  # before one is damaged: the other is left to resume from


@dataclass(frozen=True)
class AttemptResult:
    """The result of an attempt of a drill.

    Args:
        faults: kinds of the injected faults; a run may finish before its last.
        lost_steps: steps that earlier attempts had logged and this one repeated.
        first_step_s: time from the launch to the first step; None if there was none.
    """

    faults: tuple[str, ...]
    exit_code: int
    lost_steps: int
    first_step_s: float | None

    def __str__(self) -> str:
        text = f"{', '.join(self.faults) or 'no fault'}: exit code {self.exit_code}"
        text += f", {pluralize(self.lost_steps, 'step')} repeated"
        first = self.first_step_s
        return text if first is None else f"{text}, first step after {first:.1f} s"


@dataclass
class FaultyEnvironment:
    """The data store and the MLflow server of the ranks, and the faults that wait in them.

    Args:
        store: directory of the faults of data reads (see faulty_filesystem).
        cache: directory of cached shards; each attempt begins with an empty one.
        mlflow: faults of the MLflow server; None without a server.
    """

    store: Path
    cache: Path
    mlflow: FaultQueue | None
    _scheduled: dict[Path, str] = field(default_factory=dict)
    _num_scheduled: int = 0

    def schedule(self, faults: Iterable[Fault]) -> None:
        """Let the next requests meet these faults."""
        for fault in faults:
            if fault.store_fault:
                self._num_scheduled += 1
                file = self.store / f"{self._num_scheduled:06d}-{fault.store_fault}"
                self._scheduled[file] = fault.kind
                file.touch()
            elif fault.mlflow_fault and self.mlflow:
                self.mlflow.due.append(fault)

    def clear(self) -> None:
        """Remove the faults that no request has met."""
        for file in self._scheduled:
            file.unlink(missing_ok=True)
        self._scheduled.clear()
        if self.mlflow:
            self.mlflow.due.clear()

    def pop_injected(self) -> list[str]:
        """Return the kinds of faults that requests have met since the last call."""
        met = [file for file in self._scheduled if not file.exists()]
        kinds = [self._scheduled.pop(file) for file in met]
        while self.mlflow and self.mlflow.done:
            kinds.append(self.mlflow.done.popleft().kind)
        return kinds


def run_attempt_with_faults(
    run: RunDir, config: Config, plan: Plan, attempt: AttemptPlan, environment: FaultyEnvironment
) -> AttemptResult:
    """Run an attempt with its scheduled faults."""
    number, fatal = run.num_attempts + 1, attempt.fatal
    store = CheckpointStore.for_run(run, config)
    injector, output = _FaultInjector(Steps(run, number), attempt, store), io.StringIO()
    shutil.rmtree(environment.cache, ignore_errors=True)
    environment.schedule(attempt.transient)
    with _fault_variables(fatal, environment), redirect_stdout(output), redirect_stderr(output):
        injector.thread.start()
        try:
            exit_code = run_attempt(run, config, plan, FAULTY_WORKER)
        finally:
            injector.attempt_ended.set()
            injector.thread.join()
    injected = list(injector.injected)
    if fatal and fatal.is_in_save and exit_code not in (ExitCode.FINISHED, ExitCode.STOPPED):
        injected.append(fatal.kind)
    corrupts = fatal and fatal.corrupts_checkpoint and fatal.kind in injected
    if fatal and corrupts and not _corrupt_checkpoint(store, fatal):
        injected[-1] = "kill all ranks"
    injected += environment.pop_injected()
    return attempt_result(run, number, injected, exit_code)


def attempt_result(
    run: RunDir, attempt: int, faults: Iterable[str], exit_code: int
) -> AttemptResult:
    """Read the result of an attempt from its log and the metrics."""
    log = run.log_dir(attempt) / "rank-00000.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    started = "starting from scratch|beginning with the weights of"
    resumed = re.search(rf"continuing after step (\d+)|{started}", text)
    first = re.search(r"first step after ([\d.]+) s", text)
    records = read_json_lines(run.metrics_file)
    before = max((record["step"] for record in records if record["attempt"] < attempt), default=0)
    lost = before - int(resumed[1] or 0) if resumed else 0
    return AttemptResult(tuple(faults), exit_code, max(0, lost), float(first[1]) if first else None)


class Steps:
    """Counter of the logged steps of an attempt; each read continues after the last."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self._file, self._attempt = run.metrics_file, attempt
        self._end_bytes = self._count = 0

    def reached(self, number: int) -> bool:
        """Check whether so many steps are logged."""
        for end_bytes, record in read_records(self._file, self._end_bytes):
            self._end_bytes = end_bytes
            is_of_attempt = record["attempt"] == self._attempt
            self._count += is_of_attempt and "train/loss" in record["metrics"]
        return self._count >= number


class _FaultInjector:
    """Pauses, stops or kills the ranks of an attempt after the scheduled steps."""

    def __init__(self, steps: Steps, attempt: AttemptPlan, store: CheckpointStore) -> None:
        self.injected: list[str] = []
        self.attempt_ended = threading.Event()
        self._steps, self._store = steps, store
        self.thread = threading.Thread(target=self._inject, args=(attempt,), daemon=True)

    def _inject(self, attempt: AttemptPlan) -> None:
        for fault in attempt.transient:
            if fault.is_pause and self._wait_until(lambda: self._steps.reached(1)):
                self._pause(fault)
        fatal = attempt.fatal
        if fatal is None or fatal.is_in_save:
            return
        after_steps = fatal.after_steps
        if self._wait_until(lambda: self._steps.reached(after_steps)):
            if fatal.corrupts_checkpoint:
                self._wait_until(lambda: len(self._store.steps()) >= _MIN_CHECKPOINTS)
            self._end(fatal)

    def _wait_until(self, is_true: Callable[[], bool]) -> bool:
        """Wait for a condition; return False if the attempt ends first."""
        while not self.attempt_ended.wait(_POLL_S):
            if is_true():
                return True
        return False

    def _pause(self, fault: Fault) -> None:
        pids = _rank_pids()
        if pids:
            pid = pids[fault.target % len(pids)]
            if _send(pid, signal.SIGSTOP):
                time.sleep(_PAUSE_S)
                _send(pid, signal.SIGCONT)
                self.injected.append(fault.kind)

    def _end(self, fault: Fault) -> None:
        pids = _rank_pids()
        if fault.kind in ("kill one rank", "ask to stop") and pids:
            pids = [pids[fault.target % len(pids)]]
        number = signal.SIGTERM if fault.kind == "ask to stop" else signal.SIGKILL
        if [pid for pid in pids if _send(pid, number)]:
            self.injected.append(fault.kind)


def _rank_pids() -> list[int]:
    """Return the process ids of the ranks that this process has started, in their order."""
    pids = []
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if FAULTY_WORKER.encode() in command:
            pids.append(int(pid))
    return pids


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _fault_variables(fatal: Fault | None, environment: FaultyEnvironment) -> Iterator[None]:
    """Set the environment variables that pass the faults of saves and reads to the ranks."""
    in_save = None
    if fatal is not None and fatal.is_in_save:
        in_save = {"how": "die" if "kill" in fatal.kind else "full", "call": fatal.target}
    variables = {"TAHOE_FAULT": json.dumps(in_save), DIRECTORY: str(environment.store)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def _corrupt_checkpoint(store: CheckpointStore, fault: Fault) -> bool:
    """Corrupt a file of the newest checkpoint; return False if there is no other checkpoint."""
    steps = store.steps()
    if len(steps) < _MIN_CHECKPOINTS:
        return False
    rng = random.Random(fault.target)  # noqa: S311
    directory = store.location(steps[-1])
    file = filesystem.join(directory, rng.choice(filesystem.list_names(directory)))
    data = bytearray(filesystem.read_bytes(file))
    offset = rng.randrange(len(data))
    if "truncate" in fault.kind:
        del data[offset:]
    else:
        data[offset] ^= 1 << rng.randrange(8)
    filesystem.write_bytes(file, bytes(data))
    return True
