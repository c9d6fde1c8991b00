"""Draw the plots of a finished run once, in a process that has torch, and send them to MLflow."""

import subprocess
import sys
from typing import TYPE_CHECKING

from orchestrator.run.rundir import RunDir

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_store.run import MlflowRun

_TIMEOUT_S = 300


class PlotsError(Exception):
    """The plots could not be drawn; the run itself is not affected."""


def upload_plots(tracked: "MlflowRun") -> None:
    """Draw the plots of a finished run, unless they are up to date, and send them.

    Raises:
        PlotsError: they cannot be drawn.
        MlflowException, OSError: they cannot be sent.
    """
    run = tracked.run
    is_enabled = (tracked.config.get("logging") or {}).get("plots", False)
    if not (is_enabled and run.is_finished and run.predictions_file.exists()):
        return
    if not _are_up_to_date(run):
        command = [sys.executable, "-m", "orchestrator.evaluation.run_plots", str(run.path)]
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise PlotsError(f"they were not drawn within {_TIMEOUT_S} s") from None
        if process.returncode:
            raise PlotsError((process.stderr.strip().splitlines() or ["no reason was given"])[-1])
    tracked.send_directory(run.plots_dir)


def _are_up_to_date(run: RunDir) -> bool:
    """Check whether the last plot is newer than the final predictions."""
    last_plot = run.plots_dir / "confusion.png"
    return last_plot.exists() and last_plot.stat().st_mtime >= run.predictions_file.stat().st_mtime
