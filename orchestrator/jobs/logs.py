"""The logs of ranks across attempts, for `tahoe logs`."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.launch.progress_bar import LineTail
from orchestrator.run.rundir import RunDir, RunError

_READ_EVERY_S, _CHECK_EVERY_S = 0.3, 5.0  # reads of the files; checks of the run, at the scheduler


def follow_log(run: RunDir, rank: int, *, is_active: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a rank's logs, of all attempts, as they are written.

    Args:
        is_active: a check whether more lines may come.
    """
    tails: dict[Path, LineTail] = {}
    checked_s = float("-inf")
    while True:
        if time.monotonic() - checked_s >= _CHECK_EVERY_S:
            active, checked_s = is_active(), time.monotonic()  # before the last lines are read
        for file in sorted(run.path.glob(f"logs/attempt-*/rank-{rank:05d}.log")):
            if file not in tails:
                tails[file] = LineTail(file)
                yield f"== {file.parent.name}"
            yield from tails[file].lines()
        if not active:
            break
        time.sleep(_READ_EVERY_S)
    if not tails:
        raise RunError(
            f"{run.path} has no log of rank {rank}: no attempt has got that far, or there are "
            "fewer ranks",
            value=rank,
            hint=f"The output of its jobs is in {run.path}/slurm.",
        )
