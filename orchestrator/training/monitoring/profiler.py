"""A trace of some steps by torch.profiler, for Perfetto or chrome://tracing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def profile_steps(
    steps: tuple[int, int] | None, first_step: int, file: Path
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; write the trace of the given steps to a file.

    Args:
        steps: the first and the last step to trace, by the number of steps done, or None.
        first_step: the first step of this attempt, 0-based.
    """
    if steps is None or steps[1] <= first_step:
        yield lambda: None
        return
    num_skipped = max(steps[0] - 1 - first_step, 0)
    num_traced = steps[1] - first_step - num_skipped
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(
            wait=0, warmup=0, active=num_traced, repeat=1, skip_first=num_skipped
        ),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(file)),
    ) as profiler:
        yield profiler.step
