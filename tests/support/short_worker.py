"""A rank without training: `python -m short_worker RUN` ends as SHORT_WORKER says."""

import os
import sys
import time
from pathlib import Path

from orchestrator.run.outcome import RunOutcome
from orchestrator.run.rundir import RunDir
from orchestrator.training.monitoring import watchdog


def main() -> int:
    how, attempt = os.environ["SHORT_WORKER"], int(os.environ["TAHOE_ATTEMPT"])
    if how == "hangs":
        with watchdog.hang_watchdog(0.1):
            watchdog.heartbeat()
            time.sleep(60)
    if how == "crashes":
        return 3
    outcome = RunOutcome(how, 14, "the ranks' reason")  # type: ignore[arg-type]
    outcome.write(RunDir(Path(sys.argv[1])), attempt)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
