"""A late request is sent a second time, the first answer counts, and few are sent twice."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from data_sharding.io import hedging
from data_sharding.io.hedging import RequestHedger

SIZE = 1000


@pytest.fixture(autouse=True)
def floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hedging, "_FLOOR_S", 0.01)


class Request:
    """A request whose attempts end as listed: with bytes, an error, or never."""

    def __init__(self, *ends: bytes | Exception | None) -> None:
        self.ends, self.num_sent, self.num_cancelled = ends, 0, 0

    async def __call__(self) -> bytes:
        end = self.ends[self.num_sent]
        self.num_sent += 1
        if end is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.num_cancelled += 1
        if isinstance(end, Exception):
            raise end
        assert end is not None
        return end


async def warm(hedger: RequestHedger, num: int = 100, fraction: float = 0.03) -> None:
    for _ in range(num):
        await hedger.send(Request(b"a"), SIZE, fraction)


def run(test: Callable[[RequestHedger], Awaitable[None]]) -> RequestHedger:
    async def in_time() -> None:
        await asyncio.wait_for(test(hedger), 30)  # type: ignore[arg-type]

    hedger = RequestHedger("s3://bucket")
    asyncio.run(in_time())
    return hedger


def test_the_second_attempt_wins_and_the_first_is_cancelled() -> None:
    late = Request(None, b"second")

    async def test(hedger: RequestHedger) -> None:
        await warm(hedger)
        assert await hedger.send(late, SIZE, 0.03) == b"second"

    hedger = run(test)
    assert (late.num_sent, late.num_cancelled) == (2, 1)
    assert (hedger.num_requests, hedger.num_hedged, hedger.num_won) == (101, 1, 1)


def test_a_second_attempt_that_fails_leaves_the_first() -> None:
    answered = asyncio.Event()

    async def test(hedger: RequestHedger) -> None:
        await warm(hedger)
        num_sent = 0

        async def slow_then_broken() -> bytes:
            nonlocal num_sent
            num_sent += 1
            if num_sent == 2:
                asyncio.get_running_loop().call_later(0.05, answered.set)
                raise OSError("reset")
            await answered.wait()
            return b"first"

        assert await hedger.send(slow_then_broken, SIZE, 0.03) == b"first"

    assert run(test).num_won == 0


def test_errors_are_raised_as_without_hedging() -> None:
    async def test(hedger: RequestHedger) -> None:
        await warm(hedger)
        with pytest.raises(PermissionError):
            await hedger.send(Request(PermissionError("no")), SIZE, 0.03)

    assert run(test).num_hedged == 0


def test_second_attempts_are_limited_where_all_are_late() -> None:
    async def test(hedger: RequestHedger) -> None:
        await warm(hedger)
        slow = [
            asyncio.ensure_future(hedger.send(Request(None, None), SIZE, 0.03)) for _ in "x" * 100
        ]
        await asyncio.wait(slow, timeout=0.1)
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)

    hedger = run(test)
    assert 1 <= hedger.num_hedged <= 0.03 * hedger.num_requests


@pytest.mark.parametrize(
    ("num_warm", "size", "fraction"), [(20, SIZE, 1), (100, 10**6, 1), (100, SIZE, 0)]
)
def test_nothing_is_sent_twice_before_enough_is_known(
    num_warm: int, size: int, fraction: float
) -> None:
    """Of requests of this size; nor where it is switched off."""
    late = Request(None, b"second")

    async def test(hedger: RequestHedger) -> None:
        await warm(hedger, num_warm, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hedger.send(late, size, fraction), 0.05)

    run(test)
    assert late.num_sent == late.num_cancelled == 1


def test_late_answers_do_not_move_the_threshold(caplog: pytest.LogCaptureFixture) -> None:
    async def test(hedger: RequestHedger) -> None:
        for number in range(500):
            request = Request(None, b"b") if number % 25 == 24 and number > 99 else Request(b"a")
            await hedger.send(request, SIZE, 0.05)

    hedger = run(test)
    assert hedger.num_won == 16
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # seen from any process
