"""Measure how long an index of remote shards takes: read whole, and by headers and labels.

    python tests/benchmarks/indexing.py [ROUNDS]

The store is a web server on this machine that answers after 20 ms and sends 90 MB/s on a
connection, with and without a link of 25 MB/s (200 Mbit/s) that all connections share. Client and
server share the cores. The images are noise, of 20 kB to 2 MB. The choice that `index` would make
is printed beside the times.
"""

import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "support"))

from s3_server import make_shards

from data_sharding.format.sample_rule import SampleRule
from data_sharding.scanning.header_scan import choose_way
from data_sharding.scanning.resumable_scan import ScanRecords, scan_resumably
from data_sharding.scanning.scan import ReadOptions

LATENCY_S, CONNECTION_MB_PER_S = 0.02, 90
SHARD_BYTES, NUM_SHARDS = 32e6, 16
IMAGE_BYTES = (20_000, 110_000, 500_000, 2_000_000)
NUM_WORKERS = 2
CHUNK_BYTES = 1 << 17


class Store:
    """A web server of a directory with ranges, latency and limited rates.

    Args:
        link_mb_per_s: the rate of all connections together; None: any.
    """

    def __init__(self, root: Path, link_mb_per_s: float | None) -> None:
        self._root, self._link = root, link_mb_per_s
        self._free_s = 0.0  # when the link is free again

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                await self._respond(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _respond(self, head: list[str], writer: asyncio.StreamWriter) -> None:
        method, path, _ = head[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        await asyncio.sleep(LATENCY_S)
        file = self._root / path.lstrip("/")
        if not file.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        size = file.stat().st_size
        start, stop = 0, size
        if "range" in fields:
            first, last = fields["range"].removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, size)
        status = "206 Partial Content" if "range" in fields else "200 OK"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\nAccept-Ranges: bytes\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
        )
        if method == "GET":
            await self._send(file, start, stop, writer)

    async def _send(self, file: Path, start: int, stop: int, writer: asyncio.StreamWriter) -> None:
        begin_s, sent = time.monotonic(), 0
        with file.open("rb") as content:
            content.seek(start)
            while sent < stop - start:
                chunk = content.read(min(CHUNK_BYTES, stop - start - sent))
                writer.write(chunk)
                await writer.drain()
                sent += len(chunk)
                end_s = begin_s + sent / (CONNECTION_MB_PER_S * 1e6)
                if self._link is not None:
                    now_s = time.monotonic()
                    self._free_s = max(self._free_s, now_s) + len(chunk) / (self._link * 1e6)
                    end_s = max(end_s, self._free_s)
                await asyncio.sleep(max(end_s - time.monotonic(), 0))


@contextmanager
def serving(root: Path, link_mb_per_s: float | None) -> Iterator[str]:
    """Serve a directory; yield its URL."""
    store, started, urls = Store(root, link_mb_per_s), threading.Event(), list[str]()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        server = await asyncio.start_server(store.serve, "127.0.0.1", 0)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        async with server:
            await server.serve_forever()

    threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True).start()
    started.wait()
    yield urls[0]  # it ends with this process


class Row(NamedTuple):
    """Seconds that an index took, the medians of all rounds."""

    whole_s: float
    headers_s: float
    choice: str


def measure(root: Path, link_mb_per_s: float | None, rounds: int) -> Row:
    """Index the shards of a directory each way."""
    rule = SampleRule()
    with serving(root, link_mb_per_s) as url:
        urls = [f"{url}/{path.name}" for path in sorted(root.glob("*.tar"))]
        choice = choose_way(urls, rule, print)
        times: dict[Literal["whole", "headers"], list[float]] = {"whole": [], "headers": []}
        for _ in range(rounds):
            for what, seconds in times.items():
                options = ReadOptions(num_workers=NUM_WORKERS, what=what)
                start_s = time.monotonic()
                scan_resumably(urls, rule, options)
                seconds.append(time.monotonic() - start_s)
                ScanRecords(urls, rule).remove()
    whole_s, headers_s = (statistics.median(seconds) for seconds in times.values())
    return Row(whole_s, headers_s, choice)


def main() -> None:
    """Print a line for each size of images and each link."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    for image_bytes in IMAGE_BYTES:
        with tempfile.TemporaryDirectory() as directory:
            num_samples = round(SHARD_BYTES / image_bytes)
            make_shards(Path(directory), NUM_SHARDS, num_samples, image_bytes)
            for link in (None, 25):
                row = measure(Path(directory), link, rounds)
                print(
                    f"{image_bytes / 1e3:,.0f} kB images, link {link or 'any'}: whole "
                    f"{row.whole_s:.1f} s, headers {row.headers_s:.1f} s; index chooses "
                    f"{row.choice}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
