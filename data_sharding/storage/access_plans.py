"""What the jobs of a node will read next, so that the cache evicts what is needed last.

A live plan is a file that its owner holds locked as long as it lives. It says at which batch its
owner is and at which batch it next needs each shard. Plans are written and read under the lock of
the cache's room, so nobody sees half of one.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from data_sharding.io.file_lock import exclusive_lock, remove_if_unlocked


class AccessPlan:
    """The plan of one process, as others see it."""

    def __init__(self, file: IO[bytes], room_lock: Path) -> None:
        self._file, self._room_lock = file, room_lock

    def write(self, position: int, next_uses: Mapping[str, int]) -> None:
        """Say where this process is.

        Args:
            position: the batch that comes next.
            next_uses: from the digest of a shard to the first batch from there on that needs it.
        """
        text = json.dumps({"position": position, "next_uses": next_uses}).encode()
        with exclusive_lock(self._room_lock):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(text)


@contextmanager
def publish_access_plan(plans: Path, room_lock: Path) -> Iterator[AccessPlan]:
    """Take part in a cache with a plan; it ends with this context or with the process."""
    path = plans / f"{uuid4().hex}.plan"
    with exclusive_lock(path) as file:
        assert file is not None
        try:
            yield AccessPlan(file, room_lock)
        finally:
            path.unlink(missing_ok=True)


def next_use_distances(plans: Path) -> dict[str, int]:
    """Return in how many batches each shard is next needed by any live plan, by digest.

    The caller holds the lock of the room. Plans of processes that have ended are removed.
    """
    distances: dict[str, int] = {}
    for path in plans.glob("*.plan"):
        if remove_if_unlocked(path):
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):  # its owner ended in mid-write
            plan = json.loads(path.read_bytes())
            for digest, batch in plan["next_uses"].items():
                distance = max(batch - plan["position"], 0)
                distances[digest] = min(distance, distances.get(digest, distance))
    return distances
