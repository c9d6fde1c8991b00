"""The open shards of a process: the most recently used, within the limit on open files."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

_MAX_OPEN = 256


class _Closable(Protocol):
    def close(self) -> None: ...


_Reader = TypeVar("_Reader", bound=_Closable)


class ReaderPool(Generic[_Reader]):
    """Readers by name. A copy sent to another process starts empty."""

    def __init__(self) -> None:
        self._readers: OrderedDict[str, _Reader] = OrderedDict()

    def get(self, name: str, open_shard: Callable[[], _Reader]) -> _Reader:
        """Return the reader of that name, opening it if needed."""
        if name not in self._readers:
            self._readers[name] = open_shard()
            if len(self._readers) > _MAX_OPEN:
                self._readers.popitem(last=False)[1].close()
        self._readers.move_to_end(name)
        return self._readers[name]

    def close_if(self, condition: Callable[[_Reader], bool]) -> None:
        """Close the readers for which the condition holds."""
        for name in [name for name, reader in self._readers.items() if condition(reader)]:
            self._readers.pop(name).close()

    def __reduce__(self) -> tuple[Any, ...]:
        return ReaderPool, ()
