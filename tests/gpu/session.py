"""A session of checks: its options, its time, and a row for each check."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isolated import run_isolated

Row = dict[str, Any]  # section, check, status, seconds, and figures by name
_LEAST_S = 5.0  # a check with less time is not begun


@dataclass
class Session:
    """Checks, each in a process of its own, until the time is over.

    `is_quick` takes networks and numbers of steps that show nothing but that the code works.
    """

    device: str
    is_quick: bool
    directory: Path
    num_seconds: float
    rows: list[Row] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)
    section: str = ""

    @property
    def left_s(self) -> float:
        return self.num_seconds - (time.monotonic() - self.start_s)

    def run(self, name: str, function: Callable[[], Any], limit_s: float = 120) -> Any:
        """Run a check and add its row; return its value, or None if there is none."""
        if self.left_s < _LEAST_S:
            self.add(name, "no time", 0.0, {})
            return None
        log_file = self.directory / "logs" / f"{self.section}-{name}.log".replace(" ", "_")
        outcome = run_isolated(function, log_file, min(limit_s, self.left_s))
        if outcome.problem is not None:
            self.add(name, "failed", outcome.seconds, {"problem": outcome.problem})
            return None
        figures = outcome.value if isinstance(outcome.value, dict) else {}
        self.add(name, "ok", outcome.seconds, figures)
        return outcome.value

    def add(self, name: str, status: str, seconds: float, figures: dict[str, Any]) -> None:
        """Add a row, and print it at once."""
        row = {"section": self.section, "check": name, "status": status, "seconds": seconds}
        self.rows.append(row | figures)
        text = ", ".join(f"{key} {shown(value)}" for key, value in figures.items())
        print(f"  {status:8} {seconds:6.1f} s  {name:36} {text}", flush=True)


def shown(value: Any) -> str:
    """Format a figure."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
