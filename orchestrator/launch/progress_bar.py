"""Show a running attempt: a progress bar on a terminal, plain lines elsewhere.

Both come from the files that rank 0 writes into the run directory, so watching costs the ranks
nothing and works from any process that sees the directory.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from orchestrator.number_format import format_metric
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir

_PROGRESS_LINE = re.compile(r"INFO +step \d+/\d+  epoch [\d.]+  loss ")  # not of "val"


class ProgressBar:
    """Follow rank 0's log and the metrics of an attempt."""

    def __init__(self, run: RunDir, plan: Plan, log_file: Path) -> None:
        self._plan = plan
        self._log = LineTail(log_file)
        self._metrics = LineTail(run.metrics_file, from_end=True)
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("starting", total=plan.num_steps)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        self._bar.stop()

    def update(self) -> None:
        """Show the lines that have been written since the last call."""
        for line in self._log.lines():
            if self._console.is_terminal and _PROGRESS_LINE.search(line):
                continue  # the bar shows it
            self._console.print(line, markup=False)
        for line in self._metrics.lines() if self._console.is_terminal else ():
            record = json.loads(line)
            if "train/loss" in record["metrics"]:
                self._show_step(record["step"], record["metrics"])

    def _show_step(self, step: int, metrics: dict[str, float]) -> None:
        parts = (
            f"epoch {step / self._plan.steps_per_epoch:.2f}",
            f"loss {format_metric('train/loss', metrics['train/loss'])}",
            f"{format_metric('images_per_s', metrics['perf/images_per_s'])} images/s",
            f"data wait {100 * metrics['perf/data_wait_fraction']:.0f} %",
        )
        self._bar.update(self._task, completed=step, description="  ".join(parts))


class LineTail:
    """The complete lines that a file has gained since the last call."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def lines(self) -> Iterator[str]:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if text := line.decode(errors="replace").rstrip("\n"):
                    yield text
