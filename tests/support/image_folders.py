"""Directories of images for tests, and what a source makes of them."""

from pathlib import Path

import pytest

from data_sharding.errors import DataError
from data_sharding.sources.base import Source
from data_sharding.sources.folder import folder


def make(root: Path, *names: str) -> Path:
    """Write files that hold their own name; a source does not look into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def listed(source: Source, split: str) -> list[tuple[str, str, int, str]]:
    samples = source.splits[split]
    found = [samples[i] for i in range(len(samples))]
    return [(s.key, s.extension, s.label, s.read().decode()) for s in found]


def error_of(directory: Path, val_fraction: float | None = None) -> DataError:
    """Return the error of a directory that cannot be listed."""
    with pytest.raises(DataError) as caught:
        folder(directory, val_fraction)
    return caught.value
