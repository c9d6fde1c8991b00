"""A remote file that can be sliced like a memory map: what is looked at is fetched, by ranges.

The headers of a tar are read front to back, with gaps where the images are. Each request fetches
more than it must, since the label of a sample is beside its header. The window grows while the gaps
are small beside it, up to reading everything, and shrinks where they are large.
"""

from bisect import bisect, insort
from collections.abc import Callable

from data_sharding.io.download import ByteRange, DownloadSettings, fetch_ranges

_SMALLEST, _FIRST, _LARGEST = 8 << 10, 64 << 10, 1 << 20  # bytes of a window
_SMALL_GAP = 1 / 4  # of the window
_MAX_KEPT_BYTES = 64 << 20  # a header or label that was dropped is fetched again


class RangedFile:
    """The bytes of a remote file.

    Args:
        num_bytes: the size of the file.
        on_fetch: called with the offset of each window before it is fetched; it may raise.

    Raises:
        ShardError, UnavailableError: when it is sliced or read, as `fetch_ranges` does.
    """

    def __init__(
        self,
        url: str,
        num_bytes: int,
        settings: DownloadSettings,
        on_fetch: Callable[[int], None] = lambda offset: None,
    ) -> None:
        self._url, self._num_bytes, self._settings = url, num_bytes, settings
        self._on_fetch = on_fetch
        self._windows: dict[int, bytes] = {}  # by offset, the oldest first
        self._offsets: list[int] = []  # of the windows, sorted
        self._last_stop, self._window_bytes, self._kept_bytes = 0, _FIRST, 0
        self._position = 0

    def __len__(self) -> int:
        return self._num_bytes

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(len(self))
        if start >= stop:
            return b""
        index = bisect(self._offsets, start) - 1
        if index >= 0:
            offset = self._offsets[index]
            data = self._windows[offset]
            if stop <= offset + len(data):
                return data[start - offset : stop - offset]
        return self._fetch(start, stop)[: stop - start]

    def seek(self, position: int, /) -> int:
        """Set the position of `read`."""
        self._position = position
        return position

    def tell(self) -> int:
        """Return the position of `read`."""
        return self._position

    def read(self, num_bytes: int = -1, /) -> bytes:
        """Read from the position on, and advance it."""
        stop = len(self) if num_bytes < 0 else self._position + num_bytes
        data = self[self._position : stop]
        self._position += len(data)
        return data

    def _fetch(self, start: int, stop: int) -> bytes:
        """Fetch the window at an offset, at least up to `stop`, and keep it."""
        self._on_fetch(start)
        if self._windows:
            is_small = 0 <= start - self._last_stop < self._window_bytes * _SMALL_GAP
            wanted = self._window_bytes * 2 if is_small else self._window_bytes // 2
            self._window_bytes = min(max(wanted, _SMALLEST), _LARGEST)
        self._last_stop = min(max(stop, start + self._window_bytes), len(self))
        fetched: list[bytes] = []
        wanted_range = ByteRange(self._url, start, self._last_stop)
        fetch_ranges([wanted_range], self._settings, lambda _, data: fetched.append(data))
        self._keep(start, fetched[0])
        return fetched[0]

    def _keep(self, offset: int, data: bytes) -> None:
        if offset in self._windows:
            self._drop(offset)
        self._windows[offset] = data
        insort(self._offsets, offset)
        self._kept_bytes += len(data)
        while self._kept_bytes > _MAX_KEPT_BYTES and len(self._windows) > 1:
            self._drop(next(iter(self._windows)))

    def _drop(self, offset: int) -> None:
        self._kept_bytes -= len(self._windows.pop(offset))
        self._offsets.remove(offset)
