"""Work in processes: results in order, progress to the end, and a killed process is an error."""

import os
import signal
import time

import pytest

from data_sharding.errors import DataError
from data_sharding.io.process_pool import ProgressFn, parallel_map

DEADLINE_S = 30


def ignore(done: int) -> None:
    pass


def power(exponent: int, item: int, advance: ProgressFn) -> int:
    for _ in range(item):
        advance(1)
    return int(item**exponent)


def fail_at_three(job: None, item: int, advance: ProgressFn) -> int:
    if item == 3:
        raise DataError("three")
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:  # until it is stopped
        advance(1)
    raise AssertionError("this was not stopped")


def die(job: None, item: int, advance: ProgressFn) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_are_in_order_and_progress_ends_at_the_sum(num_workers: int) -> None:
    seen: list[int] = []
    results: list[int] = []
    returned = parallel_map(
        power, 2, range(20), num_workers=num_workers, on_progress=seen.append,
        on_result=results.append,
    )  # fmt: skip
    assert returned == sorted(results) == [item * item for item in range(20)]
    assert seen == sorted(seen)
    assert seen[-1] == sum(range(20))


def test_an_error_ends_the_others() -> None:
    start_s = time.monotonic()
    with pytest.raises(DataError, match="three"):
        parallel_map(fail_at_three, None, [1, 3], num_workers=2, on_progress=ignore)
    assert time.monotonic() - start_s < DEADLINE_S


def test_an_error_about_a_result_ends_the_others() -> None:
    def refuse(result: int) -> None:
        raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        parallel_map(power, 2, [1] * 100, num_workers=2, on_progress=ignore, on_result=refuse)


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(DataError, match="killed"):
        parallel_map(die, None, [1, 2], num_workers=2, on_progress=ignore)
