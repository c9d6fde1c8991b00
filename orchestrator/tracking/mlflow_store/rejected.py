"""Send batches to a server that may reject values: find those, cut or drop them, send the rest.

A server rejects a whole batch for one value that it does not accept, and the limits depend on its
version: MLflow before 2.8 has params of 500 characters, before 2.13 tags of 5000.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException

from orchestrator.redact import cut, one_line_error

log = logging.getLogger("tahoe.shipper")
T = TypeVar("T")
Text = TypeVar("Text", Param, RunTag)

_REJECTED = "INVALID_PARAMETER_VALUE"
_LENGTHS = (5000, 500, 250)  # limits of servers, in characters


class RejectedValues:
    """Send values, and keep in `reasons` the treatment of each rejected name, and the reason.

    Args:
        check: a function that raises if the run itself cannot be written any more.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.reasons: dict[str, str] = {}
        self._check = check

    def send_texts(self, texts: Sequence[Text], send: Callable[[list[Text]], object]) -> None:
        """Send params or tags; cut the rejected ones to the greatest length that is accepted."""
        for text, error in self._rejected(texts, send):
            lengths = (length for length in _LENGTHS if length < len(text.value))
            accepted = next((n for n in lengths if self._send_cut(text, n, send)), None)
            treatment = f"cut to {accepted} characters" if accepted else "left out"
            self._note(text.key, treatment, error)

    def send_all(
        self, items: Sequence[T], send: Callable[[list[T]], object], name: Callable[[T], str]
    ) -> None:
        """Send items that cannot be cut; leave out the rejected ones, from now on unsent."""
        remaining = [item for item in items if name(item) not in self.reasons]
        for item, error in self._rejected(remaining, send):
            self._note(name(item), "left out", error)

    def _send_cut(self, text: Text, length: int, send: Callable[[list[Text]], object]) -> bool:
        """Send the beginning of a text; return whether it was accepted."""
        shorter: Text = cast("Any", type(text))(text.key, cut(text.value, length))
        return not [*self._rejected([shorter], send)]

    def _rejected(
        self, items: Sequence[T], send: Callable[[list[T]], object]
    ) -> Iterator[tuple[T, MlflowException]]:
        """Send items, and yield those that are rejected alone, by bisection."""
        if not items:
            return
        try:
            send([*items])
        except MlflowException as error:
            if error.error_code != _REJECTED:
                raise
            self._check()
            if len(items) == 1:
                yield items[0], error
                return
            middle = len(items) // 2
            yield from self._rejected(items[:middle], send)
            yield from self._rejected(items[middle:], send)

    def _note(self, name: str, treatment: str, error: MlflowException) -> None:
        if name not in self.reasons:
            self.reasons[name] = f"{treatment}: {one_line_error(error)}"
            log.warning("the server rejects %s, which is %s", name, self.reasons[name])
