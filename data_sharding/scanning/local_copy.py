"""A shard as a local file: in place on a local disk, else as a temporary copy."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from data_sharding.errors import DataError, ShardError
from data_sharding.format.manifest import ShardInfo
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.io.download import fetch_file


@contextmanager
def local_copy(
    url: str, scratch: str | Path | None = None, *, keep: bool = False
) -> Iterator[Path]:
    """Yield the path of a local file, or of a copy of a remote one.

    Args:
        scratch: directory for copies; by default the system's for temporary files.
        keep: leave the copy in `scratch`.
    """
    path = filesystem.local_path(url)
    if path is not None:
        yield path
        return
    with ExitStack() as stack:
        if keep and scratch is not None:
            directory = Path(scratch)
        else:
            temporary = TemporaryDirectory(prefix="tahoe-shard-", dir=scratch)
            directory = Path(stack.enter_context(temporary))
        copy = directory / f"{sha256(url.encode()).hexdigest()}.tar"
        download(url, copy)
        yield copy


@contextmanager
def open_shard(
    url: str, shard: ShardInfo, rule: SampleRule, scratch: str | Path | None = None
) -> Iterator[ShardReader]:
    """Open a local or remote shard of a manifest.

    Raises:
        DataError: it cannot be read, or differs from its manifest.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(url, scratch))
            reader = stack.enter_context(ShardReader(path, shard, rule=rule))
        except (ShardError, OSError, ValueError, ImportError) as error:
            raise DataError(
                f"cannot read the shard {url}: {reason_of(error)}",
                value=url,
                hint="`verify` lists all that is wrong with the data set.",
            ) from error
        yield reader


def reason_of(error: Exception) -> str:
    """Return why a shard cannot be used, without the path, which may be that of a copy."""
    if isinstance(error, ShardError):
        return str(error.__cause__ or error.problem)
    return f"{type(error).__name__}: {error}"


def download(url: str, path: Path) -> None:
    """Copy a remote file to a local path."""
    with path.open("wb") as file:
        fetch_file(url, filesystem.size(url), file)
