"""Saves that are killed at each of their calls that write, one after the other; real processes.

    python tests/support/killed_saves.py URL

Prints, for each call, what it was, which step was the newest afterwards, and how many uploads had
to be ended; the last line is of a save that was not killed.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec.config
from fsspec.implementations.local import LocalFileOpener

from data_sharding.io import filesystem
from orchestrator.checkpoint.store import CheckpointStore

SIZES = {"model.safetensors": 12 << 20, "optimizer.pt": 6 << 20, "state.json": 100}
KILLED = 9
_PIECE = 3 << 20
_WRITES = {
    *("put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"),
    *("delete_object", "delete_objects"),
}


def save(url: str, step: int) -> None:
    def part(num_bytes: int) -> Callable[[Any], None]:
        def write(file: Any) -> None:
            for start in range(0, num_bytes, _PIECE):
                file.write(bytes([step]) * min(_PIECE, num_bytes - start))

        return write

    CheckpointStore(url).save(step, {name: part(size) for name, size in SIZES.items()}, {})


def in_child(action: Callable[[], object]) -> str:
    """Run something in a process of its own, and return what it says; fsspec does not outlive."""
    read, write = os.pipe()
    if not os.fork():
        try:
            os.dup2(write, 3)
            os.write(3, json.dumps(action()).encode())
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) in (0, KILLED), text
    return text


def killed_at(url: str, number: int) -> str:
    """Save step 20, and end the process at a call that writes, counted from 0; say which it was."""

    def action() -> None:
        count = 0

        def counted(name: str) -> None:
            nonlocal count
            if count == number:
                os.write(3, name.encode())
                os._exit(KILLED)
            count += 1

        watch(counted)
        save(url, 20)

    said = in_child(action)
    return "" if said == "null" else said


def watch(counted: Callable[[str], None]) -> None:
    """Let each call that writes be announced before it is made."""

    def before(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def announced(*args: Any, **kwargs: Any) -> Any:
            counted(name)
            return call(*args, **kwargs)

        setattr(owner, name, announced)

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one writer: the order is the same
    before(LocalFileOpener, "write")
    before(os, "fsync")
    before(Path, "replace")
    if "s3" in fsspec.config.conf:
        from s3fs import S3FileSystem

        S3FileSystem.default_block_size = 5 << 20  # the least that S3 takes: several parts a file
        for name in ("call_s3", "_call_s3"):  # the first, of files, goes round the second
            before_request(S3FileSystem, name, counted)


def before_request(owner: Any, name: str, counted: Callable[[str], None]) -> None:
    call = getattr(owner, name)

    def announced(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method in _WRITES:
            counted(method)
        return call(self, method, *args, **kwargs)

    setattr(owner, name, announced)


def newest(url: str) -> int:
    """Return the newest checkpoint; it has been read and verified."""
    with CheckpointStore(url).open_latest() as found:
        assert found is not None
        step, parts = found
        assert {name: path.stat().st_size for name, path in parts.items()} == SIZES
        assert set(parts["state.json"].read_bytes()) == {step}
        return step


def main(url: str) -> None:
    in_child(lambda: save(url, 10))
    number, call = 0, "begin"
    while call:
        call = killed_at(url, number)
        step = json.loads(in_child(lambda: newest(url)))
        ended = json.loads(in_child(lambda: filesystem.abort_multipart_uploads(url)))
        print(json.dumps({"call": call, "newest": step, "uploads": ended}), flush=True)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1])
