"""One attempt of a drill: run as any other, and hurt from a thread beside it."""

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
from orchestrator.drill.mlflow_proxy import Faults
from orchestrator.launch.local_launcher import run_attempt
from orchestrator.number_format import pluralize
from orchestrator.run.exit_status import ExitCode
from orchestrator.run.metric_stream import read_records
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, read_json_lines

FAULTY_WORKER = "orchestrator.drill.faulty_worker"
_POLL_S = 0.01
_PAUSE_S = 0.3
_CHECKPOINTS = 2  # that must be there before one is damaged: one is left to resume from


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt of a drill went.

    Args:
        faults: that were done, by kind; a run may finish before its last.
        lost_steps: that attempts before had logged, and that were done again.
        first_step_s: from its launch to its first step; None if there was none.
    """

    faults: tuple[str, ...]
    exit_code: int
    lost_steps: int
    first_step_s: float | None

    def __str__(self) -> str:
        what = ", ".join(self.faults) or "left alone"
        how = f"{what}: exit code {self.exit_code}, {pluralize(self.lost_steps, 'step')} done again"
        first = self.first_step_s
        return how if first is None else f"{how}, first step after {first:.1f} s"


@dataclass
class FaultyEnvironment:
    """What the ranks of a drill work with, and how it fails.

    Args:
        store: the directory of faults that reads of data meet (see drill_store).
        cache: of the shards that have been read; each attempt begins with an empty one.
        mlflow: the faults of the server; None where the runs are tracked in a file.
    """

    store: Path
    cache: Path
    mlflow: Faults | None
    _dealt: dict[Path, str] = field(default_factory=dict)
    _num_dealt: int = 0

    def deal(self, faults: Iterable[Fault]) -> None:
        """Let these happen as soon as anything is asked for."""
        for fault in faults:
            if fault.store_fault:
                self._num_dealt += 1
                file = self.store / f"{self._num_dealt:06d}-{fault.store_fault}"
                self._dealt[file] = fault.kind
                file.touch()
            elif fault.mlflow_fault and self.mlflow:
                self.mlflow.due.append(fault)

    def calm(self) -> None:
        """Take back what has not happened."""
        for file in self._dealt:
            file.unlink(missing_ok=True)
        self._dealt.clear()
        if self.mlflow:
            self.mlflow.due.clear()

    def happened(self) -> list[str]:
        """Return the kinds of what has happened since this was asked last."""
        gone = [file for file in self._dealt if not file.exists()]
        kinds = [self._dealt.pop(file) for file in gone]
        while self.mlflow and self.mlflow.done:
            kinds.append(self.mlflow.done.popleft().kind)
        return kinds


def run_attempt_with_faults(
    run: RunDir, config: Config, plan: Plan, attempt: AttemptPlan, around: FaultyEnvironment
) -> AttemptResult:
    """Run an attempt with what is scheduled for it."""
    number = run.num_attempts + 1
    store = CheckpointStore.for_run(run, config)
    injury, said = _Injury(Steps(run, number), attempt, store), io.StringIO()
    shutil.rmtree(around.cache, ignore_errors=True)
    around.deal(attempt.passing)
    with _hurting(attempt.ending, around), redirect_stdout(said), redirect_stderr(said):
        injury.thread.start()
        try:
            exit_code = run_attempt(run, config, plan, FAULTY_WORKER)
        finally:
            injury.over.set()
            injury.thread.join()
    done, ending = list(injury.done), attempt.ending
    if ending and ending.is_in_save and exit_code not in (ExitCode.FINISHED, ExitCode.STOPPED):
        done.append(ending.kind)
    is_damage = ending is not None and ending.corrupts_checkpoint and ending.kind in done
    if ending and is_damage and not _damage(store, ending):
        done[-1] = "kill all ranks"
    done += around.happened()
    return how_it_ended(run, number, done, exit_code)


def how_it_ended(run: RunDir, number: int, faults: Iterable[str], exit_code: int) -> AttemptResult:
    """Return what the logs tell of an attempt."""
    log = run.log_dir(number) / "rank-00000.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    begun = "starting from scratch|beginning with the weights of"
    resumed = re.search(rf"continuing after step (\d+)|{begun}", text)
    first = re.search(r"first step after ([\d.]+) s", text)
    records = read_json_lines(run.metrics_file)
    before = max((one["step"] for one in records if one["attempt"] < number), default=0)
    lost = before - int(resumed[1] or 0) if resumed else 0
    return AttemptResult(tuple(faults), exit_code, max(0, lost), float(first[1]) if first else None)


class Steps:
    """How many steps of an attempt have been logged; reads on from where it was."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self._file, self._attempt = run.metrics_file, attempt
        self._end_bytes = self._count = 0

    def count(self) -> int:
        for end_bytes, record in read_records(self._file, self._end_bytes):
            self._end_bytes = end_bytes
            is_of_it = record["attempt"] == self._attempt
            self._count += is_of_it and "train/loss" in record["metrics"]
        return self._count

    def reach(self, number: int) -> Callable[[], bool]:
        """Return what says whether there are so many."""
        return lambda: self.count() >= number


class _Injury:
    """Does to the ranks of an attempt what is scheduled, at the steps that it is scheduled for."""

    def __init__(self, steps: Steps, attempt: AttemptPlan, store: CheckpointStore) -> None:
        self.done: list[str] = []
        self.over = threading.Event()
        self._steps, self._store = steps, store
        self.thread = threading.Thread(target=self._hurt, args=(attempt,), daemon=True)

    def _hurt(self, attempt: AttemptPlan) -> None:
        for fault in attempt.passing:
            if fault.is_pause and self._wait(1):
                self._pause(fault)
        ending = attempt.ending
        if ending and not ending.is_in_save and self._wait(ending.after_steps):
            if ending.corrupts_checkpoint:
                self._wait_until(lambda: len(self._store.steps()) >= _CHECKPOINTS)
            self._end(ending)

    def _wait(self, steps: int) -> bool:
        """Wait until the attempt has logged so many steps; False if it is over before."""
        return self._wait_until(self._steps.reach(steps))

    def _wait_until(self, is_true: Callable[[], bool]) -> bool:
        while not self.over.wait(_POLL_S):
            if is_true():
                return True
        return False

    def _pause(self, fault: Fault) -> None:
        pids = rank_pids()
        if pids:
            pid = pids[fault.target % len(pids)]
            if _send(pid, signal.SIGSTOP):
                time.sleep(_PAUSE_S)
                _send(pid, signal.SIGCONT)
                self.done.append(fault.kind)

    def _end(self, fault: Fault) -> None:
        pids = rank_pids()
        if fault.kind in ("kill one rank", "ask to stop") and pids:
            pids = [pids[fault.target % len(pids)]]
        number = signal.SIGTERM if fault.kind == "ask to stop" else signal.SIGKILL
        if [pid for pid in pids if _send(pid, number)]:
            self.done.append(fault.kind)


def rank_pids() -> list[int]:
    """Return the processes of this machine that are ranks started by this one, in their order."""
    found = []
    for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if FAULTY_WORKER.encode() in command:
            found.append(int(pid))
    return found


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _hurting(ending: Fault | None, around: FaultyEnvironment) -> Iterator[None]:
    """Tell the ranks, by their environment, what is to fail of saves and reads."""
    wanted = None
    if ending is not None and ending.is_in_save:
        wanted = {"how": "die" if "kill" in ending.kind else "full", "call": ending.target}
    told = {"TAHOE_FAULT": json.dumps(wanted), DIRECTORY: str(around.store)}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]


def _damage(store: CheckpointStore, fault: Fault) -> bool:
    """Damage a file of the newest checkpoint, and say so, if there is one before it."""
    steps = store.steps()
    if len(steps) < _CHECKPOINTS:
        return False
    draw = random.Random(fault.target)  # noqa: S311
    where = store.location(steps[-1])
    file = filesystem.join(where, draw.choice(filesystem.list_names(where)))
    data = bytearray(filesystem.read_bytes(file))
    place = draw.randrange(len(data))
    if "truncate" in fault.kind:
        del data[place:]
    else:
        data[place] ^= 1 << draw.randrange(8)
    filesystem.write_bytes(file, bytes(data))
    return True
