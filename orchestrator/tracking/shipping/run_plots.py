"""The pictures of a finished run: drawn once, by a process that has torch, and sent to MLflow."""

import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.run.rundir import RunDir

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_store.run import MlflowRun

_DEADLINE_S = 300


class PicturesError(Exception):
    """The pictures could not be drawn; the run is none the worse for it."""


def upload_plots(tracked: "MlflowRun") -> None:
    """Draw the pictures of a run, unless they have been drawn since it ended, and send them.

    Raises:
        PicturesError: they cannot be drawn.
        MlflowException, OSError: they cannot be sent.
    """
    run = tracked.run
    if not _plots_enabled(run, tracked.config):
        return
    if not _are_drawn(run):
        command = [sys.executable, "-m", "orchestrator.evaluation.run_plots", str(run.path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise PicturesError(f"they were not drawn in {_DEADLINE_S} s") from None
        if done.returncode:
            raise PicturesError((done.stderr.strip().splitlines() or ["no reason was given"])[-1])
    tracked.send_directory(run.plots_dir)


def _plots_enabled(run: RunDir, config: Mapping[str, Any]) -> bool:
    asked = (config.get("logging") or {}).get("plots", False)
    return bool(asked) and run.is_finished and run.predictions_file.exists()


def _are_drawn(run: RunDir) -> bool:
    """Whether the picture that is drawn last is newer than what was answered at the end."""
    drawn = run.plots_dir / "confusion.png"
    return drawn.exists() and drawn.stat().st_mtime >= run.predictions_file.stat().st_mtime
