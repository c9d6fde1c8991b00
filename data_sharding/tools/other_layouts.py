"""Recognise data sets in other layouts than shards, and name the command that converts each.

Compressed tars have no places to jump to, so none of their samples could be read alone.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from data_sharding.io import filesystem

_COMPRESSED = {
    (".tar.gz", ".tgz"): "gunzip --keep",
    (".tar.xz", ".txz"): "unxz --keep",
    (".tar.bz2", ".tbz2"): "bunzip2 --keep",
    (".tar.zst", ".tzst"): "unzstd",
}
# Hugging Face's columns of image classification: image: {bytes, path}, label: int64
_FROM_PARQUET = (
    "import glob, pyarrow.parquet as pq, webdataset as wds; "
    "out = wds.ShardWriter('{split}-%06d.tar'); "
    "[out.write({{'__key__': f'{{i:09d}}', 'jpg': row['image']['bytes'], 'cls': row['label']}}) "
    "for i, row in enumerate(row for name in sorted(glob.glob({pattern!r})) "
    "for batch in pq.ParquetFile(name).iter_batches(100) for row in batch.to_pylist())]; "
    "out.close()"
)


def conversion_hint(directories: Iterable[str], split: str = "train") -> str:
    """Return a sentence on another layout in directories, with a command; empty if none is known.

    Args:
        split: the split that is looked for.
    """
    for directory in dict.fromkeys(directories):
        names: Sequence[str] = []
        with suppress(Exception):  # of stores without listings, which were asked before
            names = filesystem.list_names(directory)
        for recognise in (_compressed, _parquet, _litdata, _nested):
            if hint := recognise(directory, names, split):
                return hint
    return ""


def _compressed(directory: str, names: Sequence[str], split: str) -> str:
    for extensions, command in _COMPRESSED.items():
        for extension in extensions:
            if any(name.endswith(extension) for name in names):
                return _convert(
                    directory,
                    f"The tars are compressed, and shards are plain ({extension}). Unpack them",
                    lambda at: f"{command} {shlex.quote(at)}/*{extension}",  # noqa: B023  called at once
                )
    return ""


def _parquet(directory: str, names: Sequence[str], split: str) -> str:
    if not any(name.endswith(".parquet") for name in names):
        return ""
    own = any(split in name for name in names)
    pattern = f"*{split}*.parquet" if own else "*.parquet"
    return _convert(
        directory,
        "Parquet files are not read. Write shards from them, if the columns are `image` and "
        "`label`",
        lambda at: (
            "python -c " + shlex.quote(_FROM_PARQUET.format(split=split, pattern=f"{at}/{pattern}"))
        ),
    )


def _litdata(directory: str, names: Sequence[str], split: str) -> str:
    if "index.json" in names and any(name.endswith((".bin", ".mds")) for name in names):
        return (
            "Chunks of litdata and shards of MosaicML are not read, nor is their index: write the "
            "set from its images with `folder` or `csv`."
        )
    return ""


def _nested(directory: str, names: Sequence[str], split: str) -> str:
    with suppress(Exception):
        for name in filesystem.list_directories(directory):
            below = filesystem.list_names(filesystem.join(directory, name))
            if any(tar.endswith(".tar") for tar in below):
                pattern = filesystem.join(directory, "*", "*.tar")
                return (
                    f"There are shards one directory deeper, in {name}/: name them with a pattern, "
                    f"`tahoe shard index {shlex.quote(f'data.{split}={pattern}')}`, and likewise "
                    "those of the other split."
                )
    return ""


def _convert(directory: str, what: str, command: Callable[[str], str]) -> str:
    path = filesystem.local_path(directory)
    if path is not None:
        return f"{what}: `{command(str(path))}`."
    return f"{what} in a local copy of {directory}: `{command('.')}`."
