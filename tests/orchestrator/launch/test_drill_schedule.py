"""What is hurt when: the same for the same seed, and all that was asked for."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.drill.faults import FATAL, KINDS, TRANSIENT, schedule


@given(
    st.integers(1, 300),
    st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
    st.integers(0, 2**32),
)
def test_every_fault_is_dealt_and_the_last_attempt_is_left_alone(
    num_faults: int, kinds: list[str], seed: int
) -> None:
    attempts = schedule(num_faults, kinds, seed)
    assert attempts == schedule(num_faults, kinds, seed)
    passing = [fault for attempt in attempts for fault in attempt.passing]
    ending = [attempt.ending for attempt in attempts[:-1]]
    assert attempts[-1].ending is None
    counts = Counter([fault.kind for fault in passing])
    counts.update(fault.kind for fault in ending if fault)
    assert sum(counts.values()) == num_faults
    rounds = num_faults // sum(1 if kind in FATAL else 3 for kind in kinds)
    for kind in kinds:
        share = 1 if kind in FATAL else 3
        assert rounds * share <= counts[kind] <= (rounds + 1) * share
    assert {fault.kind for fault in passing} <= set(TRANSIENT)
    assert {fault.kind for fault in ending if fault} <= set(FATAL)


def test_another_seed_is_another_drill() -> None:
    assert schedule(40, KINDS, 0) != schedule(40, KINDS, 1)


@pytest.mark.parametrize(
    ("num_faults", "kinds", "said"), [(0, KINDS, "0 faults"), (5, ("rain",), "no such kinds: rain")]
)
def test_what_makes_no_drill(num_faults: int, kinds: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        schedule(num_faults, kinds, 0)
