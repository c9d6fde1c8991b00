"""The same work on many items in several processes, which are given the whole job once each.

Results come in the order of the items, progress is counted in images.
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
ProgressFn = Callable[[int], None]  # to be called with the number of images just dealt with
Work = Callable[[Job, Item, ProgressFn], Result]

_LOOK_EVERY_S = 0.1
_shared: dict[str, Any] = {}  # in a worker: what it has in common with the process that started it


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
    """Return what `work` makes of the job and each item, in the order of the items.

    The processes end with this one, even if it is killed.

    Args:
        work: a function of a module.
        job: pickled once for each process, while that is being started.
        num_workers: processes; 1 works in this one.
        on_progress: called now and then with the number of images dealt with so far.
        on_result: called as soon as there is one, in any order; what it raises ends the work.

    Raises:
        DataError: a process was killed; and whatever `work` raises.
    """
    if num_workers <= 1 or len(items) <= 1:
        return _in_this_process(work, job, items, on_progress, on_result)
    context = forkserver_context(__name__, work.__module__)
    num_done, stop = context.Value("q", 0), context.Event()
    workers = ProcessPoolExecutor(
        min(num_workers, len(items)),
        mp_context=context,
        initializer=_begin,
        initargs=(job, num_done, stop),
    )
    try:
        with signals_blocked():
            results = [workers.submit(_run, work, item) for item in items]
        _watch(results, lambda: on_progress(num_done.value), on_result)
        return [result.result() for result in results]
    except BrokenProcessPool as error:
        raise DataError(
            "a process that worked on the data set was killed, probably because memory ran out. "
            "The work was given up and nothing was published. Run the same command again with "
            "fewer processes (--num-workers 1), or on a machine with more memory."
        ) from error
    finally:
        stop.set()
        workers.shutdown(cancel_futures=True)


def _in_this_process(
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


def _watch(
    results: Sequence[Future[Result]],
    on_progress: Callable[[], None],
    on_result: Callable[[Result], None],
) -> None:
    """Report until all is done or something has failed."""
    pending: set[Future[Result]] = set(results)
    while pending:
        done, pending = wait(pending, timeout=_LOOK_EVERY_S, return_when=FIRST_EXCEPTION)
        on_progress()
        for result in done:
            on_result(result.result())


def _begin(job: Any, num_done: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that started this
    exit_with_parent()
    _shared.update(job=job, num_done=num_done, stop=stop)


def _run(work: Work[Any, Item, Result], item: Item) -> Result:
    return work(_shared["job"], item, _advance)


def _advance(num: int) -> None:
    if _shared["stop"].is_set():
        raise StoppedError
    with _shared["num_done"].get_lock():
        _shared["num_done"].value += num
