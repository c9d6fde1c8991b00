"""Downloads of remote files in chunks: several requests at a time, each retried until a deadline.

Stores fail in many ways that pass: they are busy, close a connection half-way, or go silent. A
chunk counts when all its bytes have arrived; otherwise it is requested again after a pause. One
that is late is requested a second time meanwhile (`hedging`).

A file system is created in the process that uses it, never inherited: a copy of its event loop and
sockets in a forked process hangs.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache, partial
from http import HTTPStatus
from typing import IO, Annotated, Any, NamedTuple, TypeVar

from fsspec.asyn import get_loop
from pydantic import Field, PositiveFloat, PositiveInt

from data_sharding.errors import DataError, ShardError, UnavailableError
from data_sharding.io import filesystem
from data_sharding.io.backoff import backoff_pauses
from data_sharding.io.hedging import RequestHedger

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 20.0
_QUIET_ATTEMPTS = 2  # transient failures are logged at DEBUG up to here

_whole_files: dict[str, bool] = {}  # by store: whether it sends them for ranges too

_Response = TypeVar("_Response")


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """Limits on the requests to a store. The bounds hold where pydantic reads them.

    Args:
        max_concurrent_requests: the number of requests in flight.
        chunk_mb: the megabytes of one request; the last chunk of a file is shorter.
        request_timeout_s: the time after which a request is abandoned and repeated; of a whole
            file, from a server that ignores ranges, the time in which nothing arrives.
        retry_timeout_s: the time without any response after which a file is unavailable.
        max_hedged_fraction: the largest fraction of the requests that are sent twice, being late.
    """

    max_concurrent_requests: PositiveInt = 8
    chunk_mb: PositiveFloat = 8.0
    request_timeout_s: PositiveFloat = 30.0
    retry_timeout_s: PositiveFloat = 600.0
    max_hedged_fraction: Annotated[float, Field(ge=0, le=1)] = 0.03

    @property
    def chunk_bytes(self) -> int:
        return max(round(self.chunk_mb * 1e6), 1)


class ByteRange(NamedTuple):
    """The bytes [start, stop) of a file."""

    url: str
    start: int
    stop: int


def fetch_ranges(
    ranges: Sequence[ByteRange], settings: DownloadSettings, receive: Callable[[int, bytes], None]
) -> None:
    """Fetch ranges of files: all of them, or raise an error.

    Args:
        receive: called with the index of a range and its bytes, in any order, from several threads.

    Raises:
        ShardError: a file does not exist.
        UnavailableError: it may not be read, or could not be until the deadline.
    """
    remotes = {url: _Remote(url) for url in {wanted.url for wanted in ranges}}
    retry = _Retry(settings)
    indices = iter(range(len(ranges)))  # each task takes the next one when it has finished one

    async def fetch_some() -> None:
        for index in indices:
            url, start, stop = ranges[index]
            remote, hedged = remotes[url], settings.max_hedged_fraction
            cat = partial(remote.cat, start, stop, hedged, settings.request_timeout_s)
            data = await retry.call(remote, cat)
            await asyncio.to_thread(receive, index, data)

    _run(_run_concurrently(fetch_some, min(settings.max_concurrent_requests, len(ranges))))


def fetch_file(
    url: str, num_bytes: int, file: IO[bytes], settings: DownloadSettings = DownloadSettings()
) -> None:
    """Fetch a file of a known size, without checking its content; raises as `fetch_ranges`."""
    chunk_bytes = num_bytes if sends_whole_files(url, settings) else settings.chunk_bytes
    starts = range(0, num_bytes, chunk_bytes)
    chunks = [ByteRange(url, i, min(i + chunk_bytes, num_bytes)) for i in starts]
    fetch_ranges(chunks, settings, lambda index, data: write_at(file, chunks[index].start, data))


def file_size(url: str, settings: DownloadSettings) -> int | None:
    """Return the size of a file in bytes; None if the store does not know it."""
    remote = _Remote(url)
    return _run(_Retry(settings).call(remote, remote.size))


def sends_whole_files(url: str, settings: DownloadSettings) -> bool:
    """Check, once a process, whether a web server ignores ranges, as Python's http.server does."""
    store = _store(url)
    if _is_web(url) and store not in _whole_files:
        remote = _Remote(url)
        _whole_files[store] = _run(_Retry(settings).call(remote, remote.ignores_ranges))
        if _whole_files[store]:
            log.warning("%s ignores ranges: it sends whole files", store)
    return _whole_files.setdefault(store, False)


def write_at(file: IO[bytes], offset: int, data: bytes) -> None:
    """Write all bytes at an offset of a file, leaving the file's position unchanged."""
    remaining = memoryview(data)
    while remaining:
        written = os.pwrite(file.fileno(), remaining, offset)
        remaining, offset = remaining[written:], offset + written


class _Remote:
    """A file of a store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._path = filesystem.store_of(url)

    async def reload_credentials(self) -> None:
        self._fs, self._path = await asyncio.to_thread(filesystem.reload_credentials, self.url)

    @property
    def is_sent_whole(self) -> bool:
        """True if a web server is known to send whole files for ranges too."""
        return _is_web(self.url) and _whole_files.get(_store(self.url), False)

    async def ignores_ranges(self) -> bool:
        """Check whether a web server answers the request of a range with the file, unread."""
        fs = self._fs
        options = {**fs.kwargs, "headers": {**fs.kwargs.get("headers", {}), "Range": "bytes=0-0"}}
        session = await fs.set_session()
        async with session.get(fs.encode_url(self._path), **options) as response:
            fs._raise_not_found_for_status(response, self.url)
            return bool(response.status == HTTPStatus.OK)

    async def cat(
        self, start: int, stop: int, max_hedged_fraction: float, silence_s: float
    ) -> bytes:
        async def request() -> bytes:
            if fs.async_impl:
                limits = _silence_limit(silence_s) if self.is_sent_whole else {}
                data: bytes = await fs._cat_file(self._path, start=start, end=stop, **limits)
            else:
                options = {"cache_type": "none"} if fs.protocol == "hf" else {}  # reads 5 MB ahead
                data = await asyncio.to_thread(
                    fs.cat_file, self._path, start=start, end=stop, **options
                )
            if len(data) > stop - start and len(data) == await self.size():
                if not self.is_sent_whole:
                    log.warning("%s ignores ranges: it sends whole files", _store(self.url))
                _whole_files[_store(self.url)] = True
                return data[start:stop]
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes arrived instead of {stop - start}")
            return data

        fs = self._fs
        if not fs.async_impl:  # its requests cannot be cancelled
            return await request()
        hedger = _hedger(_store(self.url))
        return await hedger.send(request, stop - start, max_hedged_fraction)

    async def size(self) -> int | None:
        fs = self._fs
        info = fs._info(self._path) if fs.async_impl else asyncio.to_thread(fs.info, self._path)
        size: int | None = (await info).get("size")
        return size


def _silence_limit(silence_s: float) -> dict[str, Any]:
    """Return the option by which a file may take any time to arrive, as long as some of it does."""
    from aiohttp import ClientTimeout  # installed with the file system of web servers

    return {"timeout": ClientTimeout(total=None, sock_connect=silence_s, sock_read=silence_s)}


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _store(url: str) -> str:
    """Return the store of a URL, such as s3://bucket."""
    return "/".join(url.split("/", 3)[:3])


@cache
def _hedger(store: str) -> RequestHedger:
    """Return the one hedger of a store, such as s3://bucket, in this process."""
    return RequestHedger(store)


class _Retry:
    """Repeats requests until there was no response for `retry_timeout_s`."""

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._deadline_s = time.monotonic() + settings.retry_timeout_s

    async def call(self, remote: _Remote, request: Callable[[], Awaitable[_Response]]) -> _Response:
        pauses_s = backoff_pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        attempt, has_reloaded = 0, False
        while True:
            attempt += 1
            try:
                with filesystem.store_errors():
                    timeout_s = None if remote.is_sent_whole else self._settings.request_timeout_s
                    response = await asyncio.wait_for(request(), timeout_s)
                self._deadline_s = time.monotonic() + self._settings.retry_timeout_s
                return response
            except Exception as error:
                reason = self._reason(error)
                if filesystem.is_refusal(error) and not has_reloaded:
                    log.info("%s: %s; retrying with reloaded credentials", remote.url, reason)
                    await remote.reload_credentials()
                    has_reloaded = True
                    continue
                pause_s = next(pauses_s)
                is_late = time.monotonic() + pause_s >= self._deadline_s
                if is_late or filesystem.is_refusal(error) or isinstance(error, FileNotFoundError):
                    raise self._final_error(remote.url, error, attempt) from error
            level = logging.WARNING if attempt > _QUIET_ATTEMPTS else logging.DEBUG
            log.log(level, "%s: attempt %d failed: %s", remote.url, attempt, reason)
            await asyncio.sleep(pause_s)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no response within {self._settings.request_timeout_s:g} s"
        return str(error) or type(error).__name__

    def _final_error(self, url: str, error: Exception, attempts: int) -> DataError:
        if isinstance(error, FileNotFoundError):
            return ShardError(
                f"no shard at {url}: the data set is incomplete",
                value=url,
                hint="Copy the missing file from its source, or create the data set again.",
            )
        if filesystem.is_refusal(error):
            return UnavailableError(
                f"not allowed to read {url}: {error}",
                value=url,
                hint=_refusal_hint(url),
            )
        return UnavailableError(
            f"cannot read {url}: {attempts} attempts at the same bytes failed and nothing has "
            f"arrived for {self._settings.retry_timeout_s:g} s (last error: {self._reason(error)})",
            value=url,
            hint="Check the network and the store, then resume. If the store is only slow, raise "
            "`retry_timeout_s` and `request_timeout_s`.",
        )


def _refusal_hint(url: str) -> str:
    if url.startswith(("http://", "https://")):
        return (
            "The shards themselves may be sound: if the link has expired or the server limits "
            "requests, take a new link or wait, and resume."
        )
    return "Renew the credentials of this node, and resume."


async def _run_concurrently(work: Callable[[], Coroutine[Any, Any, None]], num_tasks: int) -> None:
    """Run tasks concurrently; the first error cancels the others and is raised."""
    tasks = [asyncio.ensure_future(work()) for _ in range(num_tasks)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _run(work: Coroutine[Any, Any, _Response]) -> _Response:
    """Run a coroutine on fsspec's event loop, where its file systems live, and wait for it."""
    future = asyncio.run_coroutine_threadsafe(work, get_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # if this thread was interrupted
