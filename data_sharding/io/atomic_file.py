"""Atomic writes of local files: a reader, or a crash, sees the old content or the new."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace the content of a file."""
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` once it is complete and on disk."""
    with temporary_file(path) as (file, temporary):
        yield file
        sync(file)
        temporary.replace(path)


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Open a file beside `path` whose name no other process has, on any node that sees it."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Write the file's content to disk."""
    file.flush()
    os.fsync(file.fileno())
