"""The fault schedule is a function of the seed and has all requested faults."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.drill.faults import FATAL, KINDS, TRANSIENT, schedule


@given(
    st.integers(1, 300),
    st.lists(st.sampled_from(KINDS), min_size=1, unique=True),
    st.integers(0, 2**32),
)
def test_every_fault_is_scheduled_and_the_last_attempt_has_no_fatal_one(
    num_faults: int, kinds: list[str], seed: int
) -> None:
    attempts = schedule(num_faults, kinds, seed)
    assert attempts == schedule(num_faults, kinds, seed)
    transient = [fault for attempt in attempts for fault in attempt.transient]
    fatal = [attempt.fatal for attempt in attempts[:-1]]
    assert attempts[-1].fatal is None
    counts = Counter([fault.kind for fault in transient])
    counts.update(fault.kind for fault in fatal if fault)
    assert sum(counts.values()) == num_faults
    rounds = num_faults // sum(1 if kind in FATAL else 3 for kind in kinds)
    for kind in kinds:
        weight = 1 if kind in FATAL else 3
        assert rounds * weight <= counts[kind] <= (rounds + 1) * weight
    assert {fault.kind for fault in transient} <= set(TRANSIENT)
    assert {fault.kind for fault in fatal if fault} <= set(FATAL)


def test_seeds_give_different_schedules() -> None:
    assert schedule(40, KINDS, 0) != schedule(40, KINDS, 1)
