"""A config and a data set as the launching side knows them: plain values, and manifests alone."""

import copy
from pathlib import Path
from typing import Any

import pytest

from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.manifest import Manifest, ShardInfo, write_manifest
from orchestrator.config.parse import to_dict
from orchestrator.launch.compose import compose

AS_DIGITS = ImageProfile(1, 0, (8, 8, 8), (8, 8, 8), {"PNG": 1})


@pytest.fixture(scope="session")
def _default() -> dict[str, Any]:
    (composed,) = compose([])
    return to_dict(composed.config)


@pytest.fixture
def values(_default: dict[str, Any]) -> dict[str, Any]:
    """Return the default config, to be changed at will."""
    return copy.deepcopy(_default)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Return a data set of 1,000 and 100 images that can be planned with and not be read."""
    path = tmp_path / "data sets" / "planned"
    for split, num_samples in (("train", 1000), ("val", 100)):
        shard = ShardInfo("shard-000000.tar", num_samples, 10240, "0" * 64)
        manifest = Manifest(tuple("abcdefghij"), (shard,), {}, images=AS_DIGITS)
        write_manifest(str(path), split, manifest)
    return path
