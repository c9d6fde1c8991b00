"""One attempt of a drill: run as any other, and hurt from a thread beside it."""

import io
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from orchestrator.launch.drill_schedule import Attempt, Fault
from orchestrator.launch.local import run_attempt
from orchestrator.plan import Plan
from orchestrator.rundir import RunDir, read_json_lines
from orchestrator.schema import Config
from orchestrator.training.checkpoint import CheckpointStore
from orchestrator.training.verdict import Exit

HURT_WORKER = "orchestrator.training.hurt"
_POLL_S = 0.01
_PAUSE_S = 0.3


@dataclass(frozen=True)
class Ended:
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


def endure(run: RunDir, config: Config, plan: Plan, attempt: Attempt) -> Ended:
    """Run an attempt with what is scheduled for it."""
    before, number = last_step(run), run.num_attempts + 1
    injury, said = _Injury(run, number, attempt), io.StringIO()
    with _hurting_saves(attempt.ending), redirect_stdout(said), redirect_stderr(said):
        injury.thread.start()
        try:
            exit_code = run_attempt(run, config, plan, HURT_WORKER)
        finally:
            injury.over.set()
            injury.thread.join()
    done, ending = list(injury.done), attempt.ending
    if ending and ending.is_in_save and exit_code not in (Exit.FINISHED, Exit.STOPPED):
        done.append(ending.kind)
    is_damage = ending is not None and ending.is_damage and ending.kind in done
    if ending and is_damage and not _damage(CheckpointStore.of(run, config), ending):
        done[-1] = "kill all ranks"
    log = run.log_dir(number) / "rank-00000.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    resumed = re.search(r"continuing after step (\d+)|starting from scratch", text)
    first = re.search(r"first step after ([\d.]+) s", text)
    lost = before - int(resumed[1] or 0) if resumed else 0
    return Ended(tuple(done), exit_code, max(0, lost), float(first[1]) if first else None)


def last_step(run: RunDir) -> int:
    """Return the highest step that has been logged."""
    return max((record["step"] for record in read_json_lines(run.metrics_file)), default=0)


def _num_steps(run: RunDir, attempt: int) -> int:
    """Return how many steps an attempt has logged."""
    records = read_json_lines(run.metrics_file)
    return sum(one["attempt"] == attempt and "train/loss" in one["metrics"] for one in records)


class _Injury:
    """Does to the ranks of an attempt what is scheduled, at the steps that it is scheduled for."""

    def __init__(self, run: RunDir, number: int, attempt: Attempt) -> None:
        self.done: list[str] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._hurt, args=(run, number, attempt), daemon=True)

    def _hurt(self, run: RunDir, number: int, attempt: Attempt) -> None:
        for fault in attempt.passing:
            if self._wait(run, number, 1):
                self._pause(fault)
        ending = attempt.ending
        if ending and not ending.is_in_save and self._wait(run, number, ending.after_steps):
            self._end(ending)

    def _wait(self, run: RunDir, number: int, steps: int) -> bool:
        """Wait until the attempt has logged so many steps; False if it is over before."""
        while not self.over.wait(_POLL_S):
            if _num_steps(run, number) >= steps:
                return True
        return False

    def _pause(self, fault: Fault) -> None:
        pids = rank_pids()
        if pids:
            pid = pids[fault.which % len(pids)]
            if _send(pid, signal.SIGSTOP):
                time.sleep(_PAUSE_S)
                _send(pid, signal.SIGCONT)
                self.done.append(fault.kind)

    def _end(self, fault: Fault) -> None:
        pids = rank_pids()
        if fault.kind in ("kill one rank", "ask to stop") and pids:
            pids = [pids[fault.which % len(pids)]]
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
        if HURT_WORKER.encode() in command:
            found.append(int(pid))
    return found


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _hurting_saves(fault: Fault | None) -> Iterator[None]:
    """Tell the worker, by its environment, which call of a save is to fail."""
    wanted = None
    if fault is not None and fault.is_in_save:
        wanted = {"how": "die" if "kill" in fault.kind else "full", "call": fault.which}
    os.environ["TAHOE_HURT"] = json.dumps(wanted)
    try:
        yield
    finally:
        del os.environ["TAHOE_HURT"]


def _damage(store: CheckpointStore, fault: Fault) -> bool:
    """Damage a file of the newest checkpoint, and say so, if there is one before it."""
    steps = store.steps()
    if len(steps) < 2:
        return False
    draw = random.Random(fault.which)  # noqa: S311
    where = Path(store.location(steps[-1]))
    file = draw.choice(sorted(where.iterdir()))
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data))
    if "truncate" in fault.kind:
        del data[place:]
    else:
        data[place] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    return True
