"""One process of `tahoe shard ... --on`: write a part of a data set, or publish the set.

    python -m orchestrator.jobs.shard_part DIRECTORY

An element of the job array writes the part of its number; the job after the array publishes the
set. Exit codes: 0 done, 1 failed, 75 stopped by the signal before the time limit, to go on later.
What is stopped or killed loses the shards that it was writing, and none that is recorded.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data_sharding.errors import UserError
from data_sharding.sources.base import Source
from data_sharding.writing.parts import (
    PlannedParts,
    load_parts,
    publish_parts,
    remove_source,
    write_part,
)
from orchestrator.number_format import pluralize
from orchestrator.run.outcome import ExitCode
from slurm.sbatch import SIGNAL

_LOG_EVERY_S = 30.0


def main(arguments: Sequence[str]) -> int:
    """Write a part or publish the set, and return the exit code."""
    # Raised as a KeyboardInterrupt, which no handler of errors on the way takes for one.
    signal.signal(signal.Signals[f"SIG{SIGNAL}"], signal.default_int_handler)
    number = os.environ.get("SLURM_ARRAY_TASK_ID")
    part = None if number is None else int(number)
    try:
        plan, source = load_parts(Path(arguments[0]))
        os.chdir(plan.directory)
        num_before = plan.num_finished(part)
        try:
            _work(plan, source, part)
        except KeyboardInterrupt:
            return _stopped(plan.num_finished(part) - num_before)
        if part is None:
            remove_source(Path(arguments[0]))
    except UserError as error:
        print(f"error: {error}")
        return 1
    return 0


def _work(plan: PlannedParts, source: Source, part: int | None) -> None:
    on_progress = _logger()
    if part is None:
        publish_parts(plan, source, on_progress)
        print(f"{plan.url} is published")
    else:
        write_part(plan, source, part, on_progress)
        num_shards = pluralize(len(plan.names_of(part)), "shard")
        print(f"part {part} of {plan.num_parts} is complete: {num_shards}")


def _stopped(num_written: int) -> int:
    """Print what follows a stop before the time limit, and return the exit code."""
    print(f"stopped before the time limit, after {pluralize(num_written, 'shard')}")
    if num_written:
        return ExitCode.STOPPED
    print("error: no shard is complete in the time of a job: raise slurm.timeout_min")
    return 1


def _logger() -> Callable[[int, int], None]:
    """Return a callback that prints the progress, now and then."""
    printed_s = time.monotonic()

    def print_progress(done: int, total: int) -> None:
        nonlocal printed_s
        if time.monotonic() - printed_s >= _LOG_EVERY_S:
            printed_s = time.monotonic()
            print(f"{done:,} of {pluralize(total, 'image')}", flush=True)

    return print_progress


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
