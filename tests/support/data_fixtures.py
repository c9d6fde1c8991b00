"""What these tests share: a process to fork workers from, and remote shards."""

from pathlib import Path

import pytest
from fork_server import restart_fork_server
from s3_server import S3

from data_sharding.format.manifest import ShardInfo


@pytest.fixture(scope="session", autouse=True)
def _workers_start_at_once() -> None:
    restart_fork_server()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where a module's `shards` lie on the local disk."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def s3(s3_server: S3, shards: list[ShardInfo]) -> S3:
    """Return the server with a module's `shards`, and without faults."""
    s3_server.fail()
    return s3_server
