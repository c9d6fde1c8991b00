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

from data_sharding.manifest import DataError
from orchestrator.config import ConfigError, parse
from orchestrator.rundir import RunDir
from orchestrator.schema import Config
from orchestrator.training.checkpoint import CheckpointError
from orchestrator.training.metrics import MetricLog
from orchestrator.training.train import train
from orchestrator.training.verdict import NeverRestartError, Verdict
from orchestrator.training.world import join_world

log = logging.getLogger(__name__)

# Starting again would end the same way: these are the user's to mend.
_HOPELESS = (NeverRestartError, ConfigError, DataError, CheckpointError)


def main(arguments: Sequence[str]) -> int:
    """Run this rank and return its exit code."""
    faulthandler.enable()
    logging.captureWarnings(True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stdout
    )
    if os.environ.get("TAHOE_LAUNCHER_PIPE"):
        threading.Thread(target=_stop_without_launcher, daemon=True).start()
    run, attempt = RunDir(Path(arguments[0])), int(os.environ["TAHOE_ATTEMPT"])
    config, is_first = parse(run.read_config()), os.environ["RANK"] == "0"
    with _shipping(run, config) if is_first and config.tracking.enabled else nullcontext():
        verdict = _attempt(run, config, attempt, run.metrics_file if is_first else None)
        if is_first:
            verdict.write(run, attempt)
    return verdict.exit_code


def _attempt(run: RunDir, config: Config, attempt: int, metrics_file: Path | None) -> Verdict:
    try:
        with MetricLog(metrics_file, attempt) as metrics, join_world(config.cluster) as world:
            return train(run, config, world, metrics)
    except _HOPELESS as error:
        log.error("%s", error)  # without a traceback, which would hide what it says
        return Verdict("never_restart", None, str(error))


@contextmanager
def _shipping(run: RunDir, config: Config) -> Iterator[None]:
    """Let another process send the metrics to MLflow; at the end give it some time to catch up."""
    command = [sys.executable, "-m", "orchestrator.tracking.ship", str(run.path)]
    timeout_s = config.tracking.drain_timeout_s
    shipper = subprocess.Popen(
        [*command, "--drain-timeout-s", str(timeout_s)], stdin=subprocess.PIPE
    )
    try:
        yield
    finally:
        assert shipper.stdin is not None
        shipper.stdin.close()  # the end of this file tells it that the rank is done
        try:
            shipper.wait(timeout_s + 30)
        except subprocess.TimeoutExpired:
            shipper.kill()


def _stop_without_launcher() -> None:
    """Ask this rank to save and stop when the launcher has gone: its end of our stdin closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
