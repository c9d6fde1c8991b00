"""A process pool for one job on many items; each process receives the job once.

Results are in the order of the items, progress is counted in images.
"""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_sharding.errors import DataError
from data_sharding.io.worker_process import exit_with_parent, forkserver_context, signals_blocked

Job = TypeVar("Job")
Item = TypeVar("Item")
Result = TypeVar("Result")
ProgressFn = Callable[[int], None]  # called with the number of images just processed
Work = Callable[[Job, Item, ProgressFn], Result]

_POLL_S = 0.1
_shared: dict[str, Any] = {}  # in a worker: the job, the counter and the stop event


class StoppedError(Exception):
    """The process that started this one has given up."""


def parallel_map(
    work: Work[Job, Item, Result],
    job: Job,
    items: Sequence[Item],
    *,
    num_workers: int,
    on_progress: Callable[[int], None],
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Apply `work` to the job and each item; return the results in the order of the items.

    The processes end with this one, even if it is killed.

    Args:
        work: a function of a module.
        job: a value that is pickled once for each process, while that is being started.
        num_workers: the number of processes; 1 works in this one.
        on_progress: called repeatedly with the number of images processed so far.
        on_result: called with each result as it arrives, in any order; an exception ends the work.
    """
    if num_workers <= 1 or len(items) <= 1:
        return _map_here(work, job, items, on_progress, on_result)
    context = forkserver_context(__name__, work.__module__)
    num_done, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(
        min(num_workers, len(items)),
        mp_context=context,
        initializer=_begin,
        initargs=(job, num_done, stop),
    )
    try:
        with signals_blocked():
            results = [pool.submit(_run, work, item) for item in items]
        pending: set[Future[Result]] = set(results)
        while pending:
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
            on_progress(num_done.value)
            for result in done:
                on_result(result.result())
        return [result.result() for result in results]
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, probably because memory ran out: the work was given up "
            "and nothing was published",
            value=num_workers,
            hint="Run the same command again with a lower `num_workers`, or on a machine with more "
            "memory.",
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _map_here(
    work: Work[Job, Item, Result],
    job: Job,
    items: Sequence[Item],
    on_progress: Callable[[int], None],
    on_result: Callable[[Result], None],
) -> list[Result]:
    num_done = 0

    def advance(num: int) -> None:
        nonlocal num_done
        num_done += num
        on_progress(num_done)

    results = []
    for item in items:
        results.append(work(job, item, advance))
        on_result(results[-1])
    return results


def _begin(job: Any, num_done: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    exit_with_parent()
    _shared.update(job=job, num_done=num_done, stop=stop)


def _run(work: Work[Any, Item, Result], item: Item) -> Result:
    return work(_shared["job"], item, _advance)


def _advance(num: int) -> None:
    if _shared["stop"].is_set():
        raise StoppedError
    with _shared["num_done"].get_lock():
        _shared["num_done"].value += num
