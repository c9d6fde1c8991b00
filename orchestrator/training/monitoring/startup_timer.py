"""The time from the launch of an attempt to its first step, by phases; one line in the log."""

import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

_ends: list[tuple[str, float]] = []  # the phases of this process, and when each ended


def start(launched_s: float) -> None:
    """Start with the launch of the attempt and of this process, by this machine's clock."""
    process_s = time.time() - _process_age_s()
    _ends[:] = [("", min(launched_s, process_s)), ("launch", process_s)]


def mark(phase: str) -> None:
    """Note the end of a phase."""
    if _ends:
        _ends.append((phase, time.time()))


def is_running() -> bool:
    return bool(_ends)


def log_phases() -> None:
    """Log the duration of each phase, the first step being the last of them, and stop."""
    mark("first step")
    seconds = [f"{name} {end_s - _ends[i][1]:.2f}" for i, (name, end_s) in enumerate(_ends[1:])]
    log.info("first step after %.2f s: %s", _ends[-1][1] - _ends[0][1], ", ".join(seconds))
    _ends.clear()


def _process_age_s() -> float:
    """Return the age of this process (proc(5): the 22nd field is its start, in ticks)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
