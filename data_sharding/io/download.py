"""Bytes of remote files: in parts, over several connections, each part asked for until a deadline.

Stores fail in many ways that pass: they are busy, close a connection in the middle, or go silent. A
part counts when all its bytes have come; otherwise it is asked for again, after a pause that grows
and is drawn at random, so that a thousand ranks do not come back at the same moment.

A file system is made in the process that uses it, never inherited: a copy of its event loop and
sockets in a forked process hangs.
"""

import asyncio
import errno
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import IO, Any, NamedTuple, TypeVar

from fsspec.asyn import get_loop

from data_sharding.errors import ShardError, UnavailableError
from data_sharding.io import filesystem

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 20.0
_QUIET_ATTEMPTS = 2  # attempts that fail like this every day
_random = random.SystemRandom()  # no state: forked processes would share it, and pause alike

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class DownloadSettings:
    """How hard a store is asked.

    Args:
        num_connections: parts that are on their way at the same time.
        part_bytes: of one request; a shard's last part is shorter.
        part_timeout_s: after which a request is given up and made again.
        deadline_s: for which nothing may come before a file counts as out of reach.
    """

    num_connections: int = 8
    part_bytes: int = 8 << 20
    part_timeout_s: float = 30.0
    deadline_s: float = 600.0


class ByteRange(NamedTuple):
    """The bytes [start, stop) of a file."""

    url: str
    start: int
    stop: int


def fetch(
    pieces: Sequence[ByteRange], transfer: DownloadSettings, receive: Callable[[int, bytes], None]
) -> None:
    """Get pieces of files, all of them or an error.

    Args:
        receive: is called with the number of a piece and its bytes, in any order, from several
            threads.

    Raises:
        ShardError: a file is not there.
        UnavailableError: it may not be read, or could not be until the deadline.
    """
    remotes = {url: _Remote(url) for url in {piece.url for piece in pieces}}
    patience = _Retry(transfer)
    numbers = iter(range(len(pieces)))  # every connection takes the next when it has done one

    async def work() -> None:
        for number in numbers:
            url, start, stop = pieces[number]
            remote = remotes[url]
            data = await patience.call(remote, partial(remote.cat, start, stop))
            await asyncio.to_thread(receive, number, data)

    _run(_run_concurrently(work, min(transfer.num_connections, len(pieces))))


def fetch_file(
    url: str, num_bytes: int, file: IO[bytes], transfer: DownloadSettings = DownloadSettings()
) -> None:
    """Get a whole file of a known size, unchecked.

    Raises:
        ShardError: it is not there.
        UnavailableError: it may not be read, or could not be until the deadline.
        OSError: the file could not be written.
    """
    starts = range(0, num_bytes, transfer.part_bytes)
    parts = [ByteRange(url, start, min(start + transfer.part_bytes, num_bytes)) for start in starts]
    fetch(parts, transfer, lambda number, data: write_at(file, parts[number].start, data))


def file_size(url: str, transfer: DownloadSettings) -> int | None:
    """Return the size of a file in bytes; None where the store does not say.

    Raises:
        DataError: it could not be asked for.
    """
    remote = _Remote(url)
    return _run(_Retry(transfer).call(remote, remote.size))


def write_at(file: IO[bytes], offset: int, data: bytes) -> None:
    """Write all of some bytes at a place of a file; the file's position stays."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


class _Remote:
    """A file of a store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._path = filesystem.store_of(url)

    async def renew(self) -> None:
        """Ask from now on with credentials that are read again."""
        self._fs, self._path = await asyncio.to_thread(filesystem.renewed, self.url)

    async def cat(self, start: int, stop: int) -> bytes:
        fs = self._fs
        if fs.async_impl:
            data: bytes = await fs._cat_file(self._path, start=start, end=stop)
        else:
            data = await asyncio.to_thread(fs.cat_file, self._path, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came instead of {stop - start}")
        return data

    async def size(self) -> int | None:
        fs = self._fs
        info = fs._info(self._path) if fs.async_impl else asyncio.to_thread(fs.info, self._path)
        size: int | None = (await info).get("size")
        return size


class _Retry:
    """How long to ask again: until nothing has come for the time of the deadline."""

    def __init__(self, transfer: DownloadSettings) -> None:
        self._transfer = transfer
        self._end_s = time.monotonic() + transfer.deadline_s

    async def call(self, remote: _Remote, request: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Return what a request brings, making it again as long as there is hope."""
        is_renewed = False
        for attempt, pause_s in enumerate(_pauses(), start=1):
            try:
                with filesystem.store_errors():
                    answer = await asyncio.wait_for(request(), self._transfer.part_timeout_s)
            except Exception as error:
                reason = self._reason(error)
                if _is_refusal(error) and not is_renewed:
                    is_renewed = True
                    log.info("%s: %s; asking with keys that are read anew", remote.url, reason)
                    await remote.renew()
                    continue
                if _is_refusal(error) or isinstance(error, FileNotFoundError):
                    raise _refused(remote.url, error) from error
                if time.monotonic() + pause_s >= self._end_s:
                    raise self._given_up(remote.url, attempt, reason) from error
            else:
                self._end_s = time.monotonic() + self._transfer.deadline_s
                return answer
            level = logging.WARNING if attempt > _QUIET_ATTEMPTS else logging.DEBUG
            log.log(level, "%s: attempt %d failed: %s", remote.url, attempt, reason)
            await asyncio.sleep(pause_s)
        raise AssertionError("the pauses never end")

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._transfer.part_timeout_s:g} s"
        return str(error) or type(error).__name__

    def _given_up(self, url: str, attempts: int, reason: str) -> UnavailableError:
        return UnavailableError(
            f"cannot read {url}: {attempts} attempts at the same bytes failed, and for "
            f"{self._transfer.deadline_s:g} s nothing has come, at last because: {reason}. "
            "Training cannot go on without them. Check the network and the store, then resume; "
            "raise cluster.cache.deadline_s and part_timeout_s if the store is only slow."
        )


def _is_refusal(error: Exception) -> bool:
    """Whether a store refuses; S3 answers 400 to a HEAD with a key that has expired."""
    is_bad_request = isinstance(error, OSError) and error.errno == errno.EINVAL
    return is_bad_request or isinstance(error, PermissionError)


def _refused(url: str, error: Exception) -> ShardError | UnavailableError:
    if isinstance(error, FileNotFoundError):
        return ShardError(
            f"no shard at {url}: the data set is incomplete. Copy the missing file from where the "
            "set came from, or make the set again."
        )
    return UnavailableError(
        f"not allowed to read {url}: {error}. Its samples cannot be used until the credentials of "
        "this node, which have been read again, allow it. Renew them, and resume."
    )


def _pauses() -> Iterator[float]:
    """Return the pauses between attempts: they double, and each is drawn from its upper half."""
    return (min(_FIRST_PAUSE_S * 2**i, _LONGEST_PAUSE_S) * _random.uniform(0.5, 1) for i in count())


async def _run_concurrently(work: Callable[[], Coroutine[Any, Any, None]], num_tasks: int) -> None:
    """Run tasks side by side; the first error ends them all and is raised."""
    tasks = [asyncio.ensure_future(work()) for _ in range(num_tasks)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run(work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Run a coroutine on fsspec's event loop, where its file systems live, and wait for it."""
    future = asyncio.run_coroutine_threadsafe(work, get_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # if this thread was interrupted
