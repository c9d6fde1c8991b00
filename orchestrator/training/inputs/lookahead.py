"""Batches held before they are needed, so that a rank that will lack one can say so in time.

A step is done by all ranks or by none: one without a batch would leave the others waiting in it. A
rank's request after a step is acted on after the next (`world.AsyncMaxReduce`), so it must know by
then whether it has the batches of the step after that. If not, all ranks save and end.
"""

from collections import deque
from collections.abc import Iterator

from data_sharding.errors import DataError
from data_sharding.loading.loader import Batch
from orchestrator.training.distributed.world import World

NUM_STEPS = 2  # whose batches are held: the next, and the one after


class Ahead:
    """Yield batches while holding later ones; an error is known early, and raised in its turn.

    Args:
        num_held: the number of batches held besides those that are in use.
    """

    def __init__(self, batches: Iterator[Batch], num_held: int) -> None:
        self.error: DataError | None = None
        self._batches, self._num_held = batches, num_held
        self._held: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for _ in range(2):  # the first batch need not wait until all are held
                self._hold_another()
            if not self._held:
                break
            yield self._held.popleft()
        if self.error:
            raise self.error

    def _hold_another(self) -> None:
        if len(self._held) > self._num_held:
            return
        try:
            self._held.append(next(self._batches))
        except StopIteration:
            pass
        except DataError as error:
            self.error = error


def first_error(world: World, own: DataError | None) -> DataError:
    """Return, on all ranks alike, the error of the first rank that has one."""
    error: DataError = next(error for error in world.gather_objects(own) if error)
    return error
