"""The entry of every rank: `python -m orchestrator.training.worker RUN_DIR`.

It knows torchrun's environment names (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
MASTER_PORT), the number of the attempt (TAHOE_ATTEMPT) and the run directory; all else lies there.
"""

import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.run.exit_status import FatalRunError, RunOutcome
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.training.monitoring import startup_timer
from orchestrator.training.stop_signal import StopSignal

_STOPPING_DRAIN_S = 10.0
_CRASHED = 1  # as an exception would end it
log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run this rank and return its exit code."""
    run, is_first = RunDir(Path(arguments[0])), os.environ["RANK"] == "0"
    # Before torch is imported, which takes seconds: unheard, a signal would end this process.
    stop = StopSignal(run, polls_file=is_first)
    faulthandler.enable()
    logging.captureWarnings(True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stdout
    )
    if os.environ.get("TAHOE_LAUNCHER_PIPE"):
        threading.Thread(target=_stop_without_launcher, daemon=True).start()
    attempt = int(os.environ["TAHOE_ATTEMPT"])
    startup_timer.begin(run.attempt_start_s(attempt))
    try:
        config = parse(run.read_config())
    except (ConfigError, RunError) as error:  # somebody has edited it: starting again is no help
        if isinstance(error.__cause__, OSError):  # the disk may answer another time
            raise
        log.error("%s", error)
        verdict = RunOutcome("never_restart", None, str(error))
        verdict.write(run, attempt)
        return verdict.exit_code
    with (
        _run_monitor(run) if _should_monitor(config) else nullcontext(),
        _run_shipper(run, config, stop) if is_first and _should_ship(config) else nullcontext(),
    ):
        verdict = _attempt(run, config, attempt, stop, is_first=is_first)
        if is_first:
            verdict.write(run, attempt)
    return verdict.exit_code


def _attempt(
    run: RunDir, config: Config, attempt: int, stop: StopSignal, *, is_first: bool
) -> RunOutcome:
    log.info("attempt %d: importing torch", attempt)  # which is silent for seconds
    from data_sharding.errors import DataError, UnavailableError
    from orchestrator.checkpoint.store import CheckpointError
    from orchestrator.training.distributed.world import init_world
    from orchestrator.training.monitoring.metric_log import MetricLog
    from orchestrator.training.monitoring.watchdog import hang_watchdog
    from orchestrator.training.state.async_saver import SaveError
    from orchestrator.training.train import train

    startup_timer.done("imports")
    # Starting again would end the same way: these are the user's to mend.
    hopeless = (FatalRunError, ConfigError, DataError, CheckpointError)
    metrics_file = run.metrics_file if is_first else None
    try:
        with (
            MetricLog(metrics_file, attempt) as metrics,
            init_world(config.runtime) as world,
            hang_watchdog(config.runtime.hang_timeout_s),
        ):
            startup_timer.done("rendezvous")
            return train(run, config, world, metrics, stop)
    except (SaveError, UnavailableError) as error:
        log.error("%s", error)  # without a traceback, which would hide what it says
        sys.exit(_CRASHED)  # without a verdict: there may be room, or keys, at another time
    except hopeless as error:
        log.error("%s", error)
        return RunOutcome("never_restart", None, str(error))


def _should_ship(config: Config) -> bool:
    """Whether to ship while training: no job of a cluster opens SQLite on a shared file system."""
    is_local = config.launcher.name == "local"
    return config.tracking.enabled and (is_local or config.tracking.uri.startswith("http"))


@contextmanager
def _run_shipper(run: RunDir, config: Config, stop: StopSignal) -> Iterator[None]:
    """Let another process send the metrics to MLflow; at the end give it some time to catch up.

    Little, where this rank was asked to stop: Slurm kills it half a minute later (KillWait), and an
    attempt that has saved would look like one that was lost. The next one sends the rest.
    """
    command = [sys.executable, "-m", "orchestrator.tracking.shipping.shipper", str(run.path)]
    timeout_s = config.tracking.flush_timeout_s
    shipper = subprocess.Popen(
        [*command, "--flush-timeout-s", str(timeout_s)], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        assert shipper.stdin is not None
        shipper.stdin.close()  # the end of this file tells it that the rank is done
        if shipper.poll() is None:
            log.info("sending the rest to MLflow, which may take up to %g s", timeout_s)
        try:
            shipper.wait(_STOPPING_DRAIN_S if stop else timeout_s + 30)
        except subprocess.TimeoutExpired:
            shipper.kill()
            log.warning("not all has reached MLflow; `tahoe sync %s` sends it", run.shell_path)


def _should_monitor(config: Config) -> bool:
    """Whether to watch this node from here: its first rank does."""
    wanted = config.tracking.enabled and config.tracking.system_metrics_interval_s is not None
    return wanted and os.environ["LOCAL_RANK"] == "0"


@contextmanager
def _run_monitor(run: RunDir) -> Iterator[None]:
    """Let another process note how this node is doing; no end of a rank waits for it."""
    command = [sys.executable, "-m", "orchestrator.tracking.shipping.system_metrics", str(run.path)]
    monitor = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        monitor.kill()
        monitor.wait()


def _stop_without_launcher() -> None:
    """Ask this rank to save and stop when the launcher has gone: its end of our stdin closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
