"""What a server refuses of a batch is found, cut or left out, and said; all the rest arrives.

A server refuses a whole batch for one value that it will not take, and which it takes depends on
its version: MLflow before 2.8 has params of 500 characters, before 2.13 tags of 5000.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from orchestrator.redact import cut, one_line_error
from orchestrator.tracking.mlflow_store.client import MlflowException, Param, RunTag

log = logging.getLogger("tahoe.shipper")
T = TypeVar("T")
Text = TypeVar("Text", Param, RunTag)

_REFUSED = "INVALID_PARAMETER_VALUE"
_LENGTHS = (5000, 500, 250)  # in characters, that values of servers have had


class RejectedValues:
    """What a server has not taken as it is: `told` says of each name what became of it, and why.

    Args:
        check: raises if the run takes nothing at all any more, which is no fault of a value.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.told: dict[str, str] = {}
        self._check = check

    def send_texts(self, texts: Sequence[Text], send: Callable[[list[Text]], None]) -> None:
        """Send params or tags; one that is too long is cut until the server takes it."""
        for text, error in self._refused(texts, send):
            lengths = (length for length in _LENGTHS if length < len(text.value))
            taken = next((length for length in lengths if self._takes(text, length, send)), None)
            self._tell(text.key, f"cut to {taken} characters" if taken else "left out", error)

    def send_rest(
        self, items: Sequence[T], send: Callable[[list[T]], None], name: Callable[[T], str]
    ) -> None:
        """Send what cannot be cut; what is refused is left out, from now on without being tried."""
        for item, error in self._refused([x for x in items if name(x) not in self.told], send):
            self._tell(name(item), "left out", error)

    def _takes(self, text: Text, length: int, send: Callable[[list[Text]], None]) -> bool:
        """Send the beginning of a text; say whether it was taken."""
        made: Text = cast("Any", type(text))(text.key, cut(text.value, length))
        return not [*self._refused([made], send)]

    def _refused(
        self, items: Sequence[T], send: Callable[[list[T]], None]
    ) -> Iterator[tuple[T, MlflowException]]:
        """Send items, and yield those that are refused alone, which halving finds."""
        if not items:
            return
        try:
            send([*items])
        except MlflowException as error:
            if error.error_code != _REFUSED:
                raise
            self._check()
            if len(items) == 1:
                yield items[0], error
                return
            middle = len(items) // 2
            yield from self._refused(items[:middle], send)
            yield from self._refused(items[middle:], send)

    def _tell(self, name: str, how: str, error: MlflowException) -> None:
        if name not in self.told:
            self.told[name] = f"{how}: {one_line_error(error)}"
            log.warning("the server refuses %s, which is %s", name, self.told[name])
