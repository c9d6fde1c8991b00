"""Have the plots of finished runs drawn and sent to MLflow, by `orchestrator.evaluation.run_plots`.

That is a process with torch and a low priority. `tahoe train` starts it and ends; `tahoe sync`
waits for it, and does what is left where it was killed. The lock on the log of a run's plots lets
one process at a time draw them. A job of Slurm draws none, since all its processes end with it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.run.rundir import RunDir, RunError, hold

_COMMAND = (sys.executable, "-m", "orchestrator.evaluation.run_plots")
_TIMEOUT_S = 300.0
_LOCK_POLL_S = 0.2


class PlotsError(Exception):
    """The plots could not be drawn or sent; the run itself is not affected."""


def wants_plots(run: RunDir) -> bool:
    """Check whether a run has finished, and is to have plots."""
    has_ended = run.is_finished and run.predictions_file.exists()
    return has_ended and bool((run.read_config().get("logging") or {}).get("plots"))


def are_drawn(run: RunDir) -> bool:
    """Check whether the last plot is newer than the final predictions."""
    last_plot = run.plots_dir / "confusion.png"
    return last_plot.exists() and last_plot.stat().st_mtime >= run.predictions_file.stat().st_mtime


def start_drawing(runs: Sequence[RunDir], log_file: Path) -> "subprocess.Popen[bytes]":
    """Start to draw the plots of runs, and to send them, in a process to wait for or not.

    It has no terminal and a session of its own, so that neither Ctrl-C nor a closed terminal ends
    it.

    Args:
        log_file: the file for what the process prints.
    """
    log_file.parent.mkdir(exist_ok=True)
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [*_COMMAND, *(str(run.path) for run in runs)],
            env=_environ(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def sync_plots(run: RunDir) -> None:
    """Draw the plots that a run is to have, unless they are, and send them.

    Wait for another process that does.

    Raises:
        PlotsError: they were not drawn, or not sent.
        RunError, MlflowException, OSError: they cannot be sent.
    """
    if not wants_plots(run):
        return
    if are_drawn(run):
        with plots_lock(run):
            send_plots(run)
        return
    try:
        process = subprocess.run(
            [*_COMMAND, str(run.path)],
            env=_environ(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PlotsError(f"they were not drawn within {_TIMEOUT_S:g} s") from None
    if process.returncode:
        raise PlotsError((process.stderr.strip().splitlines() or ["no reason was given"])[-1])


def send_plots(run: RunDir) -> None:
    """Send the plots of a run to its MLflow run; those that it has are replaced.

    Raises:
        RunError: it has no MLflow run yet.
        MlflowException, OSError: they cannot be sent.
    """
    from orchestrator.tracking.mlflow_store.client import open_read_only

    state = run.read_json(run.mlflow_file)
    if state is None:
        raise RunError("it has no MLflow run yet", value=run.path)
    client = open_read_only(run.read_config()["tracking"]["uri"])
    client.log_artifacts(state["run_id"], str(run.plots_dir), run.plots_dir.name)


def _environ() -> dict[str, str]:
    return os.environ | {"PYTHONSAFEPATH": "1"}  # it finds the modules that ranks find


@contextmanager
def plots_lock(run: RunDir) -> Iterator[None]:
    """Lock the plots of a run for the block.

    Raises:
        RunError: another process draws them for longer than that may take.
    """
    run.plots_log.parent.mkdir(exist_ok=True)
    deadline_s = time.monotonic() + _TIMEOUT_S
    with run.plots_log.open("a") as file:
        while not hold(file):
            if time.monotonic() > deadline_s:
                raise RunError(f"another process has drawn them for {_TIMEOUT_S:g} s")
            time.sleep(_LOCK_POLL_S)
        yield
