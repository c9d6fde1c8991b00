"""What tests of remote reading share: one server, which takes seconds to start."""

from collections.abc import Iterator

import pytest
from s3 import S3, serve


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """Return a running server, perhaps with the faults and objects of the test before."""
    with serve() as server:
        yield server
