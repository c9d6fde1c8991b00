"""A shard as a local file, wherever it lies: in place on a local disk, else as a copy."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from data_sharding.errors import DataError, ShardError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.io.download import fetch_file


@contextmanager
def local_copy(url: str, scratch: str | None = None) -> Iterator[Path]:
    """Yield the path of a local file, or of a copy of a remote one that is removed afterwards.

    Args:
        scratch: the directory for copies; the system's for temporary files by default.

    Raises:
        FileNotFoundError: there is no such file. Stores raise other kinds for other reasons.
    """
    path = filesystem.local_path(url)
    if path is not None:
        yield path
        return
    with TemporaryDirectory(prefix="tahoe-shard-", dir=scratch) as directory:
        copy = Path(directory, "shard.tar")
        download(url, copy)
        yield copy


@contextmanager
def open_shard(
    url: str, shard: ShardInfo, labels: LabelRule, scratch: str | None = None
) -> Iterator[ShardReader]:
    """Yield the samples of a shard, wherever it lies.

    Raises:
        DataError: it is missing, damaged, or not what its manifest says.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(url, scratch))
            reader = stack.enter_context(ShardReader(path, shard, labels=labels))
        except ShardError as error:
            raise _unreadable(url, reason_of(error)) from error
        except DataError:
            raise
        except Exception as error:  # every store raises its own kinds
            raise _unreadable(url, f"{type(error).__name__}: {error}") from error
        yield reader


def reason_of(error: ShardError) -> str:
    """Return why a shard cannot be used, without the path, which may be that of a copy."""
    return str(error.__cause__ or error)


def _unreadable(url: str, why: str) -> DataError:
    return DataError(
        f"cannot read the shard {url}: {why}. There is nothing to show without it; `tahoe shard "
        "verify` lists all that is wrong with the data set."
    )


def download(url: str, path: Path) -> None:
    """Copy a remote file to a local path.

    Raises:
        FileNotFoundError: there is no such file. Stores raise other kinds for other reasons.
        DataError: its bytes did not come.
    """
    fs, remote = filesystem.store_of(url)
    with path.open("wb") as file:
        fetch_file(url, int(fs.size(remote)), file)
