"""The entry point of every rank: `python -m orchestrator.training.worker RUN_DIR`.

Its input is the run directory, torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and the number of the attempt (TAHOE_ATTEMPT). Without
that number, as under torchrun itself, the ranks begin the attempt: see external_attempt.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from orchestrator.config.key_names import explain
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.gc_frozen import freeze_gc_at_exit, gc_frozen
from orchestrator.run.outcome import CRASHED, ExitCode, FatalRunError, RunOutcome
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.training.monitoring import startup_timer
from orchestrator.training.side_processes import side_processes
from orchestrator.training.stop_signal import StopSignal

_NAMES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
log = logging.getLogger(__name__)


def main(arguments: Sequence[str], *, may_fork: bool = False) -> int:
    """Run this rank and return its exit code.

    Args:
        may_fork: True if this process has no threads yet, so that its shipper can be forked.
    """
    run, environ = RunDir(Path(arguments[0]).absolute()), os.environ
    if missing := [name for name in _NAMES if name not in environ]:
        print(f"error: not set: {', '.join(missing)}; start ranks with torchrun", file=sys.stderr)
        return ExitCode.FAILED_PERMANENTLY
    # Before torch is imported, which takes seconds: a signal would end the process until then.
    stop_signal = StopSignal(run, polls_file=environ["RANK"] == "0")
    freeze_gc_at_exit()
    faulthandler.enable()
    logging.captureWarnings(True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stdout
    )
    number = environ.get("TAHOE_ATTEMPT")
    attempt = None if number is None else int(number)
    startup_timer.start(time.time() if attempt is None else run.attempt_start_s(attempt))
    try:
        config = parse(run.read_config())
    except (ConfigError, RunError) as error:  # edited by hand: a restart would end the same way
        if isinstance(error.__cause__, OSError):  # a later read may succeed
            raise
        outcome = _never_restart(error)
        if attempt is not None:
            outcome.write(run, attempt)
        return outcome.exit_code
    return _run_attempt(run, config, attempt, stop_signal, may_fork=may_fork)


def _run_attempt(
    run: RunDir, config: Config, attempt: int | None, stop_signal: StopSignal, *, may_fork: bool
) -> int:
    """Train, and return the exit code.

    Args:
        attempt: the number of the attempt; None if the ranks have to begin it.
    """
    with ExitStack() as beside:
        if attempt is not None:  # they start while torch is imported
            beside.enter_context(side_processes(run, config, stop_signal, may_fork=may_fork))
        if os.environ.get("TAHOE_LAUNCHER_PIPE"):  # no thread before, since a shipper may be forked
            threading.Thread(target=_stop_without_launcher, daemon=True).start()
        log.info("%s: importing torch", f"attempt {attempt}" if attempt else run.id)
        with gc_frozen():
            from data_sharding.errors import DataError, UnavailableError
            from orchestrator.checkpoint.store import CheckpointError
            from orchestrator.training.distributed.world import init_world
            from orchestrator.training.external_attempt import NotBegunError, external_attempt
            from orchestrator.training.monitoring.metric_log import MetricLog
            from orchestrator.training.monitoring.watchdog import hang_watchdog
            from orchestrator.training.state.async_saver import SaveError
            from orchestrator.training.train import train

        startup_timer.mark("imports")
        is_main = os.environ["RANK"] == "0"
        try:
            with init_world(config.runtime) as world:
                startup_timer.mark("rendezvous")
                if attempt is None:
                    attempt = beside.enter_context(external_attempt(run, config, world))
                    beside.enter_context(side_processes(run, config, stop_signal))
                with (
                    MetricLog(run.metrics_file if is_main else None, attempt) as metric_log,
                    hang_watchdog(config.runtime.hang_timeout_s),
                ):
                    outcome = train(run, config, world, metric_log, stop_signal)
        except NotBegunError as refusal:
            return refusal.exit_code
        except (SaveError, UnavailableError) as error:
            log.error("%s", explain(error))  # a traceback would hide the message
            # Without an outcome: space, access or credentials may come back.
            raise SystemExit(CRASHED) from error
        except (FatalRunError, ConfigError, DataError, CheckpointError) as error:
            outcome = _never_restart(error)
        if is_main and attempt is not None:
            outcome.write(run, attempt)
    return outcome.exit_code


def _never_restart(error: Exception) -> RunOutcome:
    """Log an error that a restart would only repeat."""
    message = explain(error)
    log.error("%s", message)
    return RunOutcome("failed_permanently", None, message)


def _stop_without_launcher() -> None:
    """Send this rank SIGTERM when the launcher dies and its end of our stdin closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
