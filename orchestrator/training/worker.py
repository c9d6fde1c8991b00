"""The entry point of every rank: `python -m orchestrator.training.worker RUN_DIR`.

Its input is the run directory, torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and the number of the attempt (TAHOE_ATTEMPT).
"""

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.key_names import explain
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.run.outcome import FatalRunError, RunOutcome
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.training.monitoring import startup_timer
from orchestrator.training.stop_signal import StopSignal

_STOPPING_FLUSH_S = 10.0
_CRASHED = 1  # the exit code of an exception
log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run this rank and return its exit code."""
    run, is_main = RunDir(Path(arguments[0])), os.environ["RANK"] == "0"
    # Before torch is imported, which takes seconds: a signal would end the process until then.
    stop_signal = StopSignal(run, polls_file=is_main)
    faulthandler.enable()
    logging.captureWarnings(True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stdout
    )
    if os.environ.get("TAHOE_LAUNCHER_PIPE"):
        threading.Thread(target=_stop_without_launcher, daemon=True).start()
    attempt = int(os.environ["TAHOE_ATTEMPT"])
    startup_timer.start(run.attempt_start_s(attempt))
    try:
        config = parse(run.read_config())
    except (ConfigError, RunError) as error:  # edited by hand: a restart would end the same way
        if isinstance(error.__cause__, OSError):  # a later read may succeed
            raise
        outcome = _never_restart(error)
        outcome.write(run, attempt)
        return outcome.exit_code
    with _system_monitor(run, config), _shipper(run, config, stop_signal):
        outcome = _run_attempt(run, config, attempt, stop_signal, is_main=is_main)
        if is_main:
            outcome.write(run, attempt)
    return outcome.exit_code


def _run_attempt(
    run: RunDir, config: Config, attempt: int, stop_signal: StopSignal, *, is_main: bool
) -> RunOutcome:
    log.info("attempt %d: importing torch", attempt)
    from data_sharding.errors import DataError, UnavailableError
    from orchestrator.checkpoint.store import CheckpointError
    from orchestrator.training.distributed.world import init_world
    from orchestrator.training.monitoring.metric_log import MetricLog
    from orchestrator.training.monitoring.watchdog import hang_watchdog
    from orchestrator.training.state.async_saver import SaveError
    from orchestrator.training.train import train

    startup_timer.mark("imports")
    try:
        with (
            MetricLog(run.metrics_file if is_main else None, attempt) as metric_log,
            init_world(config.runtime) as world,
            hang_watchdog(config.runtime.hang_timeout_s),
        ):
            startup_timer.mark("rendezvous")
            return train(run, config, world, metric_log, stop_signal)
    except (SaveError, UnavailableError) as error:
        log.error("%s", explain(error))  # a traceback would hide the message
        sys.exit(_CRASHED)  # without an outcome: space, access or credentials may come back
    except (FatalRunError, ConfigError, DataError, CheckpointError) as error:
        return _never_restart(error)


def _never_restart(error: Exception) -> RunOutcome:
    """Log an error that a restart would only repeat."""
    message = explain(error)
    log.error("%s", message)
    return RunOutcome("failed_permanently", None, message)


@contextmanager
def _shipper(run: RunDir, config: Config, stop_signal: StopSignal) -> Iterator[None]:
    """Send metrics to MLflow from another process; give it some time to catch up at the end.

    A job on a cluster sends to a server only: SQLite on a shared file system is unsafe.

    After a stop request it gets 10 s: Slurm kills the job half a minute later (KillWait), and an
    attempt that has saved would look lost. The next attempt sends the rest.
    """
    is_reachable = config.launcher.name == "local" or config.tracking.uri.startswith("http")
    if os.environ["RANK"] != "0" or not (config.tracking.enabled and is_reachable):
        yield
        return
    timeout_s = config.tracking.flush_timeout_s
    module = "orchestrator.tracking.shipping.shipper"
    shipper = subprocess.Popen(
        [sys.executable, "-m", module, str(run.path), "--flush-timeout-s", str(timeout_s)],
        stdin=subprocess.PIPE,
    )
    try:
        yield
    finally:
        assert shipper.stdin is not None
        shipper.stdin.close()  # end of file: this rank is done
        if shipper.poll() is None:
            log.info("sending the remaining metrics to MLflow, for up to %g s", timeout_s)
        try:
            shipper.wait(_STOPPING_FLUSH_S if stop_signal else timeout_s + 30)
        except subprocess.TimeoutExpired:
            shipper.kill()
            log.warning(
                "some metrics have not reached MLflow; `tahoe sync %s` sends them", run.shell_path
            )


@contextmanager
def _system_monitor(run: RunDir, config: Config) -> Iterator[None]:
    """Record the system metrics of this node from another process, started by its first rank."""
    is_enabled = config.tracking.enabled and config.tracking.system_metrics_interval_s is not None
    if not is_enabled or os.environ["LOCAL_RANK"] != "0":
        yield
        return
    command = [sys.executable, "-m", "orchestrator.tracking.shipping.system_metrics", str(run.path)]
    monitor = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        monitor.kill()
        monitor.wait()


def _stop_without_launcher() -> None:
    """Send this rank SIGTERM when the launcher dies and its end of our stdin closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
