"""Where the time goes from the launch of an attempt to its first step; one line in the log."""

import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

_ends: list[tuple[str, float]] = []  # phases of this process, and when each ended


def begin(launched_s: float) -> None:
    """Note when the attempt was launched and this process began; both by this machine's clock."""
    began_s = time.time() - _age_s()
    _ends[:] = [("", min(launched_s, began_s)), ("launch", began_s)]


def done(phase: str) -> None:
    """Say that a phase has ended, and the next begins."""
    if _ends:
        _ends.append((phase, time.time()))


def is_under_way() -> bool:
    """Whether the first step has not been told yet."""
    return bool(_ends)


def tell() -> None:
    """Log how long each phase has taken, and that the first step is done."""
    done("first step")
    seconds = [f"{name} {ended_s - _ends[i][1]:.2f}" for i, (name, ended_s) in enumerate(_ends[1:])]
    log.info("first step after %.2f s: %s", _ends[-1][1] - _ends[0][1], ", ".join(seconds))
    _ends.clear()


def _age_s() -> float:
    """Return for how long this process has been there (proc(5): its 22nd field, in ticks)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
