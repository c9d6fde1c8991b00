"""Batches held ahead: an error is known early and raised in its place."""

from collections.abc import Iterator
from typing import Any

import pytest

from data_sharding.errors import DataError
from orchestrator.training.inputs.lookahead import Ahead


def failing(num: int) -> Iterator[Any]:
    yield from range(num)
    raise DataError("gone")


@pytest.mark.parametrize("num_held", [0, 2, 4])
@pytest.mark.parametrize("num", [0, 1, 9])
def test_error_is_known_early_and_raised_in_its_place(num: int, num_held: int) -> None:
    ahead, taken, known = Ahead(failing(num), num_held), list[Any](), list[bool]()

    def take_all() -> None:
        for batch in ahead:
            taken.append(batch)
            known.append(ahead.error is not None)

    with pytest.raises(DataError, match="gone"):
        take_all()
    assert taken == list(range(num))
    if num == 9:  # so long that all are held by then
        assert sum(known) == num_held


def test_end_of_batches_is_no_error() -> None:
    ahead = Ahead(iter(range(5)), 2)  # type: ignore[arg-type]
    assert list(ahead) == list(range(5))
    assert ahead.error is None
