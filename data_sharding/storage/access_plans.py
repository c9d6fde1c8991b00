"""The access plans of the processes of a node, so that the cache evicts what is needed last.

A plan is a file that its owner holds locked as long as it lives. It holds the batch that its owner
is at, and the batch at which its owner next needs each shard. Plans are written and read under the
lock of the cache's space budget, so nobody reads half of one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from data_sharding.io.file_lock import exclusive_lock, remove_if_unlocked


class AccessPlan:
    """The published plan of one process."""

    def __init__(self, file: IO[bytes], budget_lock: Path) -> None:
        self._file, self._budget_lock = file, budget_lock

    def write(self, position: int, next_uses: Mapping[str, int]) -> None:
        """Publish the position of this process.

        Args:
            position: the next batch.
            next_uses: for the digest of each shard, the first batch from there on that needs it.
        """
        text = json.dumps({"position": position, "next_uses": next_uses}).encode()
        with exclusive_lock(self._budget_lock):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)


@contextmanager
def publish_access_plan(plans: Path, budget_lock: Path) -> Iterator[AccessPlan]:
    """Publish a plan that ends with this context or with the process."""
    path = plans / f"{uuid4().hex}.plan"
    with exclusive_lock(path) as file:
        assert file is not None
        try:
            yield AccessPlan(file, budget_lock)
        finally:
            path.unlink(missing_ok=True)


def next_use_distances(plans: Path) -> dict[str, int]:
    """Return the number of batches until each shard is next needed by any live plan, by digest.

    The caller holds the lock of the space budget. Plans of processes that have ended are removed.
    """
    distances: dict[str, int] = {}
    for path in plans.glob("*.plan"):
        if remove_if_unlocked(path):
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):  # its owner ended while writing it
            plan = json.loads(path.read_bytes())
            for digest, batch in plan["next_uses"].items():
                distance = max(batch - plan["position"], 0)
                distances[digest] = min(distance, distances.get(digest, distance))
    return distances
