"""Files by URL: the few operations that Tahoe needs on local disks and object stores alike.

A URL is anything fsspec understands (`s3://bucket/set`, `memory://set`) or a plain path; spaces are
part of the name, never escaped. Failures are OSError, whatever the store raises; callers add the
consequence and the remedy. What a store refuses is tried once more with credentials that are read
again: they may have expired and been renewed since.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from glob import has_magic
from inspect import signature
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from fsspec import available_protocols
from fsspec.config import conf, conf_dir, set_conf_env, set_conf_files
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from data_sharding.io.atomic_file import open_atomic, sync, temporary_file, write_atomic

log = logging.getLogger(__name__)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_MISSING_KEYS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's
_EXPIRED_KEYS = "refreshed credentials are still expired"  # a RuntimeError of botocore


@contextmanager
def store_errors() -> Iterator[None]:
    """Convert the exceptions of stores (botocore's, aiohttp's, Google's, ...) to OSError.

    A refusal becomes a PermissionError. Built-in exceptions pass: bugs, or an invalid URL.
    """
    try:
        yield
    except Exception as error:
        cause = _http_cause(error)
        text = f"{type(cause).__name__}: {cause}"
        if _is_refused(cause):
            raise PermissionError(text) from error
        if cause is error and (isinstance(error, OSError) or type(error).__module__ == "builtins"):
            raise
        raise OSError(text) from error


def _is_refused(error: Exception) -> bool:
    """Check whether a store refuses, or the keys to ask it with are missing or expired."""
    names = ("status", "status_code", "code")
    status = next((getattr(error, name) for name in names if hasattr(error, name)), None)
    is_expired = isinstance(error, RuntimeError) and _EXPIRED_KEYS in str(error)
    return status in (401, 403) or type(error).__name__ in _MISSING_KEYS or is_expired


def _http_cause(error: Exception) -> Exception:
    """Return the cause of a FileNotFoundError: fsspec reports any failure over HTTP as one."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    is_http = type(cause).__module__.startswith("aiohttp")
    return cause if is_http and getattr(cause, "status", None) not in (404, 410) else error


def reload_credentials(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it, with credentials that are read again.

    fsspec keeps a file system forever, with the keys that it once read from files and settings.
    """
    fs, _ = store_of(url)
    with suppress(OSError, ValueError):  # a file that is being written
        set_conf_files(conf_dir, conf)
        set_conf_env(conf)
    type(fs).clear_instance_cache()
    return store_of(url)


def is_refusal(error: BaseException) -> bool:
    """Check whether a store refuses; S3 answers 400 to a HEAD with a key that has expired."""
    is_bad_request = isinstance(error, OSError) and error.errno == errno.EINVAL
    return is_bad_request or isinstance(error, PermissionError)


def _renewing_credentials(
    operation: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Convert the errors of an operation that can be repeated; repeat it once if it is refused."""

    @wraps(operation)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        url = next(argument for argument in args if isinstance(argument, str))
        try:
            with store_errors():
                return operation(*args, **kwargs)
        except OSError as error:
            if not is_refusal(error) or local_path(url) is not None:
                raise
            log.info("%s: %s; trying again with reloaded credentials", url, error)
        with store_errors():
            reload_credentials(url)
            return operation(*args, **kwargs)

    return call


def join(url: str, *names: str) -> str:
    """Return the URL of `names[0]/names[1]/...` below a URL."""
    return "/".join((url.rstrip("/"), *names))


def store_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        ValueError: the store is unknown, or within another one.
        ImportError: the store needs a package that is not installed.
    """
    *links, _ = url.split("::")
    for link in links:  # as in `simplecache::s3://bucket`; fsspec cuts any other `a::b` to a
        if link not in available_protocols():
            raise ValueError(
                f"'::' joins stores that pass requests on, and {link!r} is not one: choose a name "
                "without '::', and unpack archives"
            )
    store: tuple[Any, str] = url_to_fs(url)
    return store


def local_path(url: str) -> Path | None:
    """Return the path of a URL in the local file system, or None for any other store."""
    fs, path = store_of(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def nearest_existing(path: Path) -> Path:
    """Return the path if it exists, else its nearest parent that does.

    A path in a directory that may not be entered counts as missing.
    """
    return next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # noqa: PTH110


@_renewing_credentials
def size(url: str) -> int:
    """Return the size of a file in bytes; FileNotFoundError if it does not exist."""
    fs, path = store_of(url)
    fs.invalidate_cache(path)
    return int(fs.size(path))


@_renewing_credentials
def stored_sha256(url: str) -> str | None:
    """Return the SHA-256 (hex) that a store has of a file, or None: Hugging Face's has it."""
    fs, path = store_of(url)
    digest = (fs.info(path).get("lfs") or {}).get("sha256")
    return None if digest is None else str(digest)


@_renewing_credentials
def version(url: str) -> str:
    """Return a text that changes when a file is written again: its size, and its time or tag."""
    fs, path = store_of(url)
    can_refresh = "refresh" in signature(fs.info).parameters  # else listings are not kept
    info = fs.info(path, refresh=True) if can_refresh else fs.info(path)
    return str([info.get(key) for key in ("size", "mtime", "ETag", "LastModified", "blob_id")])


@_renewing_credentials
def modified(url: str) -> datetime:
    """Return the time at which a file was last written, in the time zone of this machine."""
    fs, path = store_of(url)
    time: datetime = fs.modified(path)
    return time.astimezone()


@_renewing_credentials
def exists(url: str) -> bool:
    """Check whether a file or directory exists."""
    fs, path = store_of(url)
    return bool(fs.exists(path))


@_renewing_credentials
def list_names(url: str) -> list[str]:
    """Return the sorted names in a directory; none if it does not exist."""
    fs, path = store_of(url)
    fs.invalidate_cache(path)
    try:
        return sorted(_last_part(name) for name in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


@_renewing_credentials
def list_directories(url: str) -> list[str]:
    """Return the sorted names of the directories in one; none if it does not exist."""
    local = local_path(url)
    if local is not None:  # fsspec does not follow links to directories
        return sorted(path.name for path in local.glob("*/")) if local.is_dir() else []
    fs, path = store_of(url)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(_last_part(entry["name"]) for entry in entries if entry["type"] == "directory")


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


@_renewing_credentials
def read_bytes(url: str) -> bytes:
    """Return the content of a file; FileNotFoundError if it does not exist."""
    fs, path = store_of(url)
    data: bytes = fs.cat_file(path)
    return data


@_renewing_credentials
def write_bytes(url: str, data: bytes) -> None:
    """Write a file atomically: a reader, or a crash, sees the old bytes or the new."""
    path = local_path(url)
    if path is None:
        fs, remote = store_of(url)
        fs.pipe_file(remote, data)  # one put, which object stores make visible at once
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


@_renewing_credentials
def write_new(url: str, data: bytes) -> None:
    """Write a file atomically unless it exists: of several writers one wins, on local disks."""
    path = local_path(url)
    if path is None:
        write_bytes(url, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path) as (file, temporary):
        file.write(data)
        sync(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                temporary.replace(path)


@_renewing_credentials
def copy(path: Path, url: str) -> None:
    """Copy a local file to a URL atomically."""
    target = local_path(url)
    if target is None:
        fs, remote = store_of(url)
        fs.put_file(str(path), remote)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as source, open_atomic(target) as file:
        shutil.copyfileobj(source, file)


@contextmanager
def open_for_write(url: str) -> Iterator[IO[bytes]]:
    """Open a new file for writing and create its directory; local files are synced at the end."""
    fs, path = store_of(url)
    with store_errors():
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        file = fs.open(path, "wb")
    try:
        yield file
        if isinstance(fs, LocalFileSystem):
            sync(file)
    finally:
        with store_errors():  # the last bytes are sent
            file.close()


@_renewing_credentials
def remove(url: str) -> None:
    """Remove a file if it exists."""
    fs, path = store_of(url)
    with suppress(FileNotFoundError):
        fs.rm_file(path)


@_renewing_credentials
def abort_multipart_uploads(url: str) -> int:
    """Abort the unfinished multipart uploads below a directory; return their number.

    The parts of a large object that a killed process has sent to S3 are invisible, and billed until
    the upload is aborted. Google's and Azure's stores drop them after a week by themselves.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
    """
    fs, path = store_of(url)
    if not hasattr(fs, "abort_mpu"):
        return 0
    bucket, _, prefix = path.partition("/")
    query = {"Bucket": bucket, "Prefix": prefix.rstrip("/") + "/"}
    uploads = fs.call_s3("list_multipart_uploads", **query).get("Uploads", [])
    for upload in uploads:
        fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
    return len(uploads)


@_renewing_credentials
def remove_directory(url: str) -> None:
    """Remove a directory with its content if it exists."""
    fs, path = store_of(url)
    with suppress(FileNotFoundError):
        if isinstance(fs, LocalFileSystem) or not has_magic(path):
            fs.rm(path, recursive=True)
            return
        for name in fs.find(path):  # since `rm` would take the path for a pattern
            fs.rm_file(name)
