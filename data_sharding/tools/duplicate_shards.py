"""Find shards given twice: their samples would count twice, or be both trained on and evaluated."""

import os
from collections.abc import Iterable, Mapping

from data_sharding.errors import DataError
from data_sharding.io import filesystem

NamedDigests = Iterable[tuple[str, str]]  # (name of a shard, its digest)


def find_duplicates(shards: Mapping[str, NamedDigests]) -> list[tuple[str, str, str]]:
    """Return the shards whose bytes came before: split, name, and the name of the first."""
    firsts, duplicates = dict[str, str](), []
    for split, named in shards.items():
        for name, digest in named:
            if digest in firsts:
                duplicates.append((split, name, firsts[digest]))
            else:
                firsts[digest] = f"{name} of {split}"
    return duplicates


def refuse_duplicates(shards: Mapping[str, NamedDigests]) -> None:
    """Raise a DataError if shards have the same bytes, under whatever names."""
    duplicates = find_duplicates(shards)
    if duplicates:
        split, name, first = duplicates[0]
        more = f" (and {len(duplicates) - 1:,} more like it)" if len(duplicates) > 1 else ""
        raise DataError(
            f"the shard {name} of {split} has the same bytes as {first}{more}: its samples would "
            "count twice, or be used both for training and for validation, so nothing was written",
            value=name,
            hint="Leave one of them out. `index` takes only the shards that match `tars`; use "
            "`force` where a manifest lists the other already.",
        )


def refuse_equal_urls(urls: Iterable[str], what: str) -> None:
    """Raise a DataError if two URLs mean the same file, also by another spelling or a link."""
    firsts = dict[str, str]()
    for url in urls:
        target = canonical_url(url)
        if target in firsts:
            raise DataError(
                f"the {what} {url} is given twice (the other is {firsts[target]}): each of its "
                "samples would be written twice, so nothing was written",
                value=url,
                hint="Leave one of them out.",
            )
        firsts[target] = url


def canonical_url(url: str) -> str:
    """Return the one spelling of a URL or path, with links resolved.

    Raises:
        DataError: it is no URL.
    """
    try:
        path = filesystem.local_path(url)
        if path is not None:
            return os.path.realpath(path)
        fs, remote = filesystem.store_of(url)
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is missing
        raise DataError(f"{url} cannot be read: {error}. Nothing was written", value=url) from error
    return str(fs.unstrip_protocol(remote))
