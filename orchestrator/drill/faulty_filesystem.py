"""A file system with injected read faults: `faulty::URL` reads URL.

`tahoe drill` reads its data through it. Each file in the directory that TAHOE_FAULT_DIR names is
a fault, e.g. `0007-cut`; the first process of the run to remove it meets it at its next read of a
byte range. fsspec finds the class by an entry point of this distribution, so the processes that
read ahead of the ranks have it too.
"""

import os
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.chained import ChainedFileSystem

PROTOCOL = "faulty"
DIRECTORY = "TAHOE_FAULT_DIR"
_SLOW_S = 1.0


class FaultyFileSystem(ChainedFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Forwards everything to another file system."""

    protocol = PROTOCOL

    def __init__(
        self,
        target_protocol: str,
        target_options: dict[str, Any] | None = None,
        fo: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._store = fsspec.filesystem(target_protocol, **(target_options or {}))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._store.ls(path, detail=detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        return self._store.info(path, **options)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """Read the bytes [start, end) of a file, or meet a fault that is due."""
        fault = None if start is None else _next_fault()
        if fault == "slow":
            time.sleep(_SLOW_S)
        elif fault == "throttled":
            raise OSError("503 SlowDown: please reduce your request rate")
        elif fault == "error":
            raise OSError("500 InternalError: please try again")
        data: bytes = self._store.cat_file(path, start=start, end=end, **options)
        return data[: len(data) // 2] if fault == "cut" else data

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return self._store.open(path, mode, **options)


def _next_fault() -> str | None:
    """Take the next fault that no other process has met."""
    directory = os.environ.get(DIRECTORY)
    for file in sorted(Path(directory).iterdir()) if directory else ():
        try:
            file.unlink()
        except FileNotFoundError:
            continue
        return file.name.partition("-")[2]
    return None
