"""Hedged requests: a request that takes unusually long is sent again, and the first answer counts.

The slowest of the many requests of a batch decides how long the batch takes, and any store answers
a few of them late for reasons of its own. The second attempt is made after twice the time that 95 %
of the recent requests of that size took: about the 99th percentile of a store that is well, and one
that does not move when some percent are late. Where all are late, the limit on the second attempts
keeps them from making it worse.

Source: Dean and Barroso, The Tail at Scale, Communications of the ACM 56(2), 2013.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

log = logging.getLogger(__name__)

_NUM_RECENT, _MIN_RECENT = 200, 40  # durations of requests of about the same size
_FRACTION, _FACTOR = 0.95, 2
_FLOOR_S = 0.2  # a second attempt before that gains little
_MAX_SAVED = 8  # second attempts in a row, after a time without any
_LOGGED = frozenset(4**power for power in range(2, 16))  # numbers of second attempts: 16, 64, ...

Request = Callable[[], Awaitable[bytes]]


class _Answer(NamedTuple):
    data: bytes
    duration_s: float


class RequestHedger:
    """The requests of this process to one store, which all run on one event loop."""

    def __init__(self, store: str) -> None:
        self.num_requests, self.num_hedged, self.num_won = 0, 0, 0
        self._store = store
        self._allowance = 0.0  # second attempts that may be made
        self._durations_s = defaultdict[int, deque[float]](lambda: deque(maxlen=_NUM_RECENT))

    async def send(self, request: Request, num_bytes: int, max_fraction: float) -> bytes:
        """Send a request, and a second time if it is late; return the first answer.

        A request that fails is not sent again here; of two, one that fails leaves the other.

        Args:
            num_bytes: the size of the answer.
            max_fraction: the number of second attempts for each request.
        """
        self.num_requests += 1
        self._allowance = min(self._allowance + max_fraction, _MAX_SAVED)
        durations_s = self._durations_s[num_bytes.bit_length()]
        delay_s = _usual_s(durations_s) if max_fraction else None
        attempts = [asyncio.ensure_future(_timed(request))]
        try:
            await asyncio.wait(attempts, timeout=delay_s)
            if not attempts[0].done() and self._allowance >= 1:
                self._allowance -= 1
                self.num_hedged += 1
                self._log(delay_s)
                attempts.append(asyncio.ensure_future(_timed(request)))
            answer = await _first_answer(attempts)
            durations_s.append(answer.result().duration_s)  # of this attempt alone
            if len(attempts) > 1:
                self.num_won += answer is attempts[1]
            return answer.result().data
        finally:
            for attempt in attempts:
                attempt.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    def _log(self, delay_s: float | None) -> None:
        if self.num_hedged in _LOGGED:
            log.warning(
                "%s is late: %d of %d requests of this process were sent a second time (now after "
                "%.2f s); the second was answered first %d times",
                self._store,
                self.num_hedged,
                self.num_requests,
                delay_s,
                self.num_won,
            )


def _usual_s(durations_s: deque[float]) -> float | None:
    """Return the seconds after which a request is late; None if too little is known."""
    if len(durations_s) < _MIN_RECENT:
        return None
    return max(_FACTOR * sorted(durations_s)[int(_FRACTION * len(durations_s))], _FLOOR_S)


async def _timed(request: Request) -> _Answer:
    start_s = time.monotonic()
    return _Answer(await request(), time.monotonic() - start_s)


async def _first_answer(attempts: Sequence[asyncio.Future[_Answer]]) -> asyncio.Future[_Answer]:
    """Wait for the first attempt that succeeds, or else for the last one that fails."""
    pending = set(attempts)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        good = [attempt for attempt in done if attempt.exception() is None]
        if good or not pending:
            return (good or [*done])[0]
