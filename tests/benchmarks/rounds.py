"""Rounds in which contestants take turns, and the lines that say what came out of them."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

QUIET_LOAD, QUIET_TIMEOUT_S = 0.2, 120  # cores that others may use while we measure


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, with the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


def take_turns(
    contestants: Mapping[str, Callable[[], float]], num_rounds: int
) -> dict[str, list[float]]:
    """Run every contestant once a round, another one first each time; return their figures."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait_until_quiet()
            found[name].append(contestants[name]())
        row = {name: float(f"{values[-1]:.4g}") for name, values in found.items()}
        print(f"round {number + 1}: {row}", flush=True)
    return found


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Divide figures of the same rounds."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def differences(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Subtract figures of the same rounds."""
    return Spread.of([a - b for a, b in zip(ours, theirs, strict=True)])


def print_bar(
    bar: str, measured: Spread, unit: str, *, at_most: float = 0, at_least: float = 0
) -> None:
    """Print what was asked for, what was measured, and whether its median holds."""
    limit = f"at most {at_most:g}" if at_most else f"at least {at_least:g}"
    holds = measured.median <= at_most if at_most else measured.median >= at_least
    print(
        f"{bar}: {limit} {unit} / {measured} {unit} / {'holds' if holds else 'MISSED'}", flush=True
    )


def print_machine() -> None:
    """Print what was measured on, and when."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    print(
        f"{time.strftime('%Y-%m-%d')}, {processor}, {os.cpu_count()} cores, {platform.platform()}, "
        f"Python {platform.python_version()}"
    )


def wait_until_quiet() -> None:
    """Wait until other processes leave the processor alone, or give up loudly."""
    deadline_s = time.monotonic() + QUIET_TIMEOUT_S
    while (load := _busy_cores(0.5)) > QUIET_LOAD:
        if time.monotonic() > deadline_s:
            raise SystemExit(f"others use {load:.1f} cores: nothing measured now would mean much")


def _busy_cores(seconds: float) -> float:
    before = _busy_s()
    time.sleep(seconds)
    return (_busy_s() - before) / seconds


def _busy_s() -> float:
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, *_ = fields
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
