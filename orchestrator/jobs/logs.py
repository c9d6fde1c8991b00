"""`tahoe logs`: what ranks have written, across attempts."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.launch.progress_bar import LineTail
from orchestrator.run.rundir import RunDir, RunError

_LOOK_EVERY_S, _ASK_EVERY_S = 0.3, 5.0  # at files; whether it goes on, which may ask Slurm


def follow_log(run: RunDir, rank: int, *, goes_on: Callable[[], bool]) -> Iterator[str]:
    """Yield the lines of a rank, of all attempts, as they come.

    Args:
        goes_on: whether more may come; asked before what is there is read, now and then.

    Raises:
        RunError: no attempt has a log of this rank.
    """
    tails: dict[Path, LineTail] = {}
    asked_s = float("-inf")
    while True:
        if time.monotonic() - asked_s >= _ASK_EVERY_S:
            going, asked_s = goes_on(), time.monotonic()
        for file in sorted(run.path.glob(f"logs/attempt-*/rank-{rank:05d}.log")):
            if file not in tails:
                tails[file] = LineTail(file)
                yield f"== {file.parent.name}"
            yield from tails[file].lines()
        if not going:
            break
        time.sleep(_LOOK_EVERY_S)
    if not tails:
        raise RunError(
            f"{run.path} has no log of rank {rank}: no attempt has got that far, or there are "
            f"fewer ranks. What Slurm says of the job lies in {run.path}/slurm."
        )
