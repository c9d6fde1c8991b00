"""Files by URL: the few operations that Tahoe needs of local disks and object stores alike.

A URL is anything fsspec understands (`s3://bucket/set`, `memory://set`) or a plain path; spaces are
part of the name, never escaped. Failures are OSError, whatever the store raises; callers add what
the user was doing and what to do about it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from glob import has_magic
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from fsspec import available_protocols
from fsspec.config import conf, conf_dir, set_conf_env, set_conf_files
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem


@contextmanager
def store_errors() -> Iterator[None]:
    """Raise as OSError what a store raises of its own kinds: botocore's, aiohttp's, Google's, ...

    A refusal is a PermissionError. Python's own kinds stay: mistakes, or a URL that is none.
    """
    try:
        yield
    except Exception as error:
        meant = _meant(error)
        text = f"{type(meant).__name__}: {meant}"
        names = ("status", "status_code", "code")
        if next((getattr(meant, n) for n in names if hasattr(meant, n)), None) in (401, 403):
            raise PermissionError(text) from error
        if meant is error and (isinstance(error, OSError) or type(error).__module__ == "builtins"):
            raise
        raise OSError(text) from error


def _meant(error: Exception) -> Exception:
    """Return why a file is missing, if it is not: so fsspec tells any failure to look over HTTP."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_of_http = type(cause).__module__.startswith("aiohttp")
    return cause if is_of_http and getattr(cause, "status", None) not in (404, 410) else error


def renewed(url: str) -> tuple[Any, str]:
    """Return the store of a URL, and the path there, with credentials that are read again.

    fsspec keeps a store for good, with the keys that it once found in files and settings.
    """
    fs, _ = store_of(url)
    with suppress(OSError, ValueError):  # a file that is being written
        set_conf_files(conf_dir, conf)
        set_conf_env(conf)
    type(fs).clear_instance_cache()
    return store_of(url)


def join(url: str, *names: str) -> str:
    """Return the URL of what is called `names[0]/names[1]/...` below a URL."""
    return "/".join((url.rstrip("/"), *names))


def store_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        ValueError: there is no such store, or one within another.
        ImportError: the store needs a package that is not there.
    """
    *links, _ = url.split("::")
    for link in links:  # as in `simplecache::s3://bucket`; fsspec cuts any other `a::b` to a
        if link not in available_protocols():
            raise ValueError(
                f"'::' joins stores that pass on to others, and {link!r} is none: choose a name "
                "without '::', and unpack archives"
            )
    store: tuple[Any, str] = url_to_fs(url)
    return store


def local_path(url: str) -> Path | None:
    """Return where a URL lies in the local file system, or None for any other store."""
    fs, path = store_of(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def nearest_existing(path: Path) -> Path:
    """Return the nearest directory above a path that is seen to be there, or the path itself.

    What lies in a directory that may not be entered counts as not there.
    """
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110


@store_errors()
def size(url: str) -> int:
    """Return how many bytes a file has.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = store_of(url)
    fs.invalidate_cache(path)
    return int(fs.size(path))


@store_errors()
def modified(url: str) -> datetime:
    """Return when a file was last written, in the time zone of this machine."""
    fs, path = store_of(url)
    when: datetime = fs.modified(path)
    return when.astimezone()


@store_errors()
def exists(url: str) -> bool:
    """Return whether there is a file or a directory at a URL."""
    fs, path = store_of(url)
    return bool(fs.exists(path))


@store_errors()
def list_names(url: str) -> list[str]:
    """Return the sorted names of what lies in a directory; none where there is no directory."""
    fs, path = store_of(url)
    fs.invalidate_cache(path)
    try:
        return sorted(name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


@store_errors()
@store_errors()
def list_directories(url: str) -> list[str]:
    """Return the sorted names of the directories in one; none where there is no directory."""
    local = local_path(url)
    if local is not None:  # fsspec does not take linked ones for directories
        return sorted(path.name for path in local.glob("*/")) if local.is_dir() else []
    fs, path = store_of(url)
    try:
        listed = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    found = (file["name"].rstrip("/") for file in listed if file["type"] == "directory")
    return sorted(name.rpartition("/")[2] for name in found)


@store_errors()
def read_bytes(url: str) -> bytes:
    """Return what a file holds.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = store_of(url)
    data: bytes = fs.cat_file(path)
    return data


@store_errors()
def write_bytes(url: str, data: bytes) -> None:
    """Publish a file whole or not at all: a reader, or a crash, sees the old bytes or the new."""
    path = local_path(url)
    if path is None:
        fs, remote = store_of(url)
        fs.pipe_file(remote, data)  # one put, which object stores make visible at once
        return
    with _published(path) as file:
        file.write(data)


def write_new(url: str, data: bytes) -> None:
    """Publish a file unless there is one: of several writers one wins, where a store can tell."""
    path = local_path(url)
    if path is None:
        write_bytes(url, data)
        return
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with open_for_write(str(temporary)) as file:
            file.write(data)
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@store_errors()
def copy(path: Path, url: str) -> None:
    """Publish a copy of a local file, whole or not at all."""
    target = local_path(url)
    if target is None:
        fs, remote = store_of(url)
        fs.put_file(str(path), remote)
        return
    with path.open("rb") as source, _published(target) as file:
        shutil.copyfileobj(source, file)


@contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """Open a local file that takes its place when it is whole."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with open_for_write(str(temporary)) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_for_write(url: str) -> Iterator[IO[bytes]]:
    """Open a new file for writing and make the directories above it; local files end durable."""
    fs, path = store_of(url)
    with store_errors():
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        file = fs.open(path, "wb")
    try:
        yield file
        if isinstance(fs, LocalFileSystem):
            file.flush()
            os.fsync(file.fileno())
    finally:
        with store_errors():  # the last bytes are sent
            file.close()


@store_errors()
def remove(url: str) -> None:
    """Remove a file; one that is not there counts as removed."""
    fs, path = store_of(url)
    with suppress(FileNotFoundError):
        fs.rm_file(path)


@store_errors()
def abort_multipart_uploads(url: str) -> int:
    """End the uploads below a directory that were begun and never finished; return how many.

    What a killed process has sent of a large object to S3 is not seen there, and is paid for until
    it is aborted. Google's and Azure's stores forget such things after a week by themselves.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
    """
    fs, path = store_of(url)
    if not hasattr(fs, "abort_mpu"):
        return 0
    bucket, _, prefix = path.partition("/")
    asked = {"Bucket": bucket, "Prefix": prefix.rstrip("/") + "/"}
    begun = fs.call_s3("list_multipart_uploads", **asked).get("Uploads", [])
    for upload in begun:
        fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
    return len(begun)


@store_errors()
def remove_directory(url: str) -> None:
    """Remove a directory and all in it; one that is not there counts as removed."""
    fs, path = store_of(url)
    with suppress(FileNotFoundError):
        if isinstance(fs, LocalFileSystem) or not has_magic(path):
            fs.rm(path, recursive=True)
            return
        for name in fs.find(path):  # since `rm` would take the path for a pattern
            fs.rm_file(name)
