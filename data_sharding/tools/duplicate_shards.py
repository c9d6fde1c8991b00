"""Shards that are there twice: their samples would count twice, or be learned and judged by."""

import os
from collections.abc import Iterable, Mapping

from data_sharding.errors import DataError
from data_sharding.io import filesystem

Named = Iterable[tuple[str, str]]  # (name of a shard, its digest)


def repeated(shards: Mapping[str, Named]) -> list[tuple[str, str, str]]:
    """Return the shards whose bytes came before: split, name, and the name of the first.

    Args:
        shards: by split.
    """
    firsts, found = dict[str, str](), []
    for split, named in shards.items():
        for name, digest in named:
            if digest in firsts:
                found.append((split, name, firsts[digest]))
            else:
                firsts[digest] = f"{name} of {split}"
    return found


def refuse_repeated(shards: Mapping[str, Named]) -> None:
    """Refuse shards that are there twice, under whatever names.

    Raises:
        DataError: there are such.
    """
    found = repeated(shards)
    if not found:
        return
    split, name, first = found[0]
    more = f" (and {len(found) - 1:,} more like it)" if len(found) > 1 else ""
    raise DataError(
        f"the shard {name} of {split} has the same bytes as {first}{more}: its samples would count "
        "twice, or be learned and judged by, so nothing was written. Leave one of them out (for "
        "`index`: --tars 'PATTERN', with --force where a manifest has it already)."
    )


def refuse_same_places(urls: Iterable[str], what: str) -> None:
    """Refuse URLs that lead to the same place, also by another spelling or a link.

    Raises:
        DataError: two of them do, or a URL is none.
    """
    firsts = dict[str, str]()
    for url in urls:
        found = place(url)
        if found in firsts:
            raise DataError(
                f"the {what} {url} is given twice (the other is {firsts[found]}): each of its "
                "samples would be written twice, so nothing was written. Leave one of them out."
            )
        firsts[found] = url


def place(url: str) -> str:
    """Return what a URL leads to, however it is spelled and whatever links it goes by.

    Raises:
        DataError: it is no URL.
    """
    try:
        path = filesystem.local_path(url)
        if path is not None:
            return os.path.realpath(path)
        fs, remote = filesystem.store_of(url)
    except (ValueError, ImportError) as error:  # of fsspec: no such protocol, or no package for it
        raise DataError(f"{url} cannot be read: {error}. Nothing was written.") from error
    return str(fs.unstrip_protocol(remote))
