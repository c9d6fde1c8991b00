"""Send the end of an attempt to a command, a URL, or both (`notify.*`).

Whoever ends the attempt calls `notify_end` last: the job script's hook, the local launcher, or rank
0 under another launcher. A receiver changes nothing: if it fails or hangs, that costs a line of log
and at most 10 s.
"""

import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from orchestrator.config.schema import Notify
from orchestrator.console import strict_json_line
from orchestrator.metrics import VAL_METRICS, score
from orchestrator.redact import one_line, one_line_error, redact_urls
from orchestrator.run.metric_stream import MetricTail, Point
from orchestrator.run.outcome import ExitCode, read_attempts
from orchestrator.run.rundir import RunDir, read_json_lines

Event = Literal["finished", "gave_up", "stalled", "requeued"]

_TIMEOUT_S = 10.0  # for all receivers together
_SCAN_S = 3.0  # of it, for the logs of many ranks
_TAIL_BYTES = 1 << 18  # has the stacks of all threads of a rank
_WATCHDOG_LINE = re.compile(rb"^Timeout \(\d+:\d\d:\d\d[.\d]*\)!", re.MULTILINE)  # faulthandler's
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*)")


def notify_end(
    run: RunDir,
    receivers: Notify,
    attempt: int,
    next_action: str | int,
    reason: str,
    *,
    log: Callable[[str], None],
) -> None:
    """Send the event of an attempt's end, if it is one; never raise.

    Args:
        next_action: `requeue`, `resubmit` or another continuation; or the exit code of the end.
        log: a function that writes a line where people look for it.
    """
    if receivers.command is None and receivers.url is None:
        return
    deadline_s = time.monotonic() + _TIMEOUT_S
    try:
        event = _event(run, attempt, next_action)
        if event is not None:
            line = strict_json_line(_describe(run, event, attempt, reason))
            _send_to_all(receivers, line, deadline_s, log)
    except Exception as error:  # the end of an attempt does not depend on its receivers
        log(f"notify: nothing was sent: {type(error).__name__}: {one_line_error(error)}")


def _event(run: RunDir, attempt: int, next_action: str | int) -> Event | None:
    """Return the event of an attempt's end; None if it was stopped, or is restarted at once."""
    if next_action == ExitCode.FINISHED:
        return "finished"
    if next_action == ExitCode.FAILED_PERMANENTLY:
        return "gave_up"
    if not run.attempt_outcome(attempt) and was_stalled(run, attempt):
        return "stalled"
    if next_action in ("requeue", "resubmit"):
        return "requeued"
    return "gave_up" if next_action == 1 else None  # a crash that nobody answers


def was_stalled(run: RunDir, attempt: int) -> bool:
    """Check whether the hang watchdog has ended a rank of an attempt."""
    until_s = time.monotonic() + _SCAN_S
    for file in sorted(run.log_dir(attempt).glob("rank-*.log")):
        if _WATCHDOG_LINE.search(_tail(file)):
            return True
        if time.monotonic() > until_s:
            break
    return False


def _tail(file: Path) -> bytes:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return log.read()


def _describe(run: RunDir, event: Event, attempt: int, reason: str) -> dict[str, Any]:
    """Return the fields of an event; None where a value is not known."""
    attempts = read_attempts(run)
    facts = attempts.get(attempt, {})
    lengths = [*read_json_lines(run.jobs_file), *attempts.values()]
    num_steps = next((x["num_steps"] for x in reversed(lengths) if "num_steps" in x), None)
    last_step, metrics, best = _val_metrics(run)
    outcome = run.read_json(run.outcome_file) or {}
    step = outcome.get("step") if outcome.get("attempt") == attempt else None
    step = last_step if step is None else step
    progress = f"step {step}" + (f" of {num_steps}" if num_steps else "")
    if event in ("finished", "gave_up"):  # the ranks' own words, if they left any
        reason = run.attempt_outcome(attempt).get("why") or reason
    reason = one_line(redact_urls(reason))
    return {
        "event": event,
        "run": run.id,
        "run_dir": str(run.path),
        "attempt": attempt,
        "step": step,
        "num_steps": num_steps,
        "reason": reason,
        "job_id": facts.get("slurm_job_id"),
        "host": socket.gethostname(),
        "metrics": metrics,
        "best_metrics": best,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "text": f"{run.id}: {event} at {progress}: {reason}",
    }


def _val_metrics(run: RunDir) -> tuple[int | None, dict[str, float], dict[str, float]]:
    """Return the last step that was logged, and the last and best value of each val metric."""
    last: dict[str, Point] = {}
    best: dict[str, float] = {}
    step = None
    for points, _ in MetricTail(run.metrics_file).batches(0, 1000):
        for point in points:
            step = max(step or 0, point.step)
            if point.key in VAL_METRICS and math.isfinite(point.value):
                if point.key not in last or point.step >= last[point.key].step:
                    last[point.key] = point
                values = (best.get(point.key, point.value), point.value)
                best[point.key] = max(values, key=partial(score, point.key))
    return step, {key: point.value for key, point in last.items()}, best


def _send_to_all(
    receivers: Notify, line: str, deadline_s: float, log: Callable[[str], None]
) -> None:
    """Send a line to the receivers at the same time; one without an answer is left behind."""
    sends: dict[str, Callable[[], str | None]] = {}
    if receivers.command is not None:
        sends["notify.command"] = partial(_run_command, receivers.command, line, deadline_s)
    if receivers.url is not None:
        sends["notify.url"] = partial(_post, receivers.url, line, deadline_s)
    problems: dict[str, str | None] = {}

    def send(name: str) -> None:
        try:
            problems[name] = sends[name]()
        except Exception as error:  # its text may have the URL
            problems[name] = type(error).__name__

    # Of daemon threads: a name server or a slow reply has no limit of its own.
    threads = {name: threading.Thread(target=send, args=(name,), daemon=True) for name in sends}
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, deadline_s - time.monotonic()))
        problem = f"no answer in {_TIMEOUT_S:g} s" if thread.is_alive() else problems[name]
        if problem:
            log(f"{name}: {problem}")


def _run_command(command: str, line: str, deadline_s: float) -> str | None:
    """Run a command of the shell with the line on stdin; return what went wrong.

    Its output is discarded: it may show secrets.
    """
    process = subprocess.Popen(  # noqa: S602  the config is trusted, as its `slurm.setup` is
        command,
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        process.communicate(f"{line}\n", timeout=max(0.0, deadline_s - 0.2 - time.monotonic()))
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"no end in {_TIMEOUT_S:g} s; it was killed"
    return f"exit code {process.returncode}" if process.returncode else None


def _post(url: str, line: str, deadline_s: float) -> str | None:
    """Post the line; return what went wrong, without the URL."""
    missing = [name for name in _VARIABLE.findall(url) if name not in os.environ]
    if missing:
        return f"${missing[0]} is not set in the environment of {socket.gethostname()}"
    request = urllib.request.Request(  # noqa: S310  the scheme is checked below
        _VARIABLE.sub(lambda match: os.environ[match[1]], url).strip(),
        data=line.encode(),
        headers={"Content-Type": "application/json", "User-Agent": "tahoe"},
        method="POST",
    )
    if request.type not in ("http", "https"):
        return "not an http or https URL"
    try:
        timeout_s = max(0.1, deadline_s - time.monotonic())
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except urllib.error.URLError as error:
        return f"not reached: {one_line(redact_urls(str(error.reason)))}"
