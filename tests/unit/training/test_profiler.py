"""Profiled steps: which they are, and what is said to limit their speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.profile import Profile
from orchestrator.run.node_times import RankTimes
from orchestrator.training.monitoring.profile_report import bound, make_report, shares, typical_rank
from orchestrator.training.step.step_profiler import steps_to_profile


@pytest.mark.parametrize(
    ("profile", "first_step", "num_steps", "expected"),
    [
        (Profile(), 0, 100, None),
        (Profile(enabled=True), 0, 100, (11, 20)),
        (Profile(enabled=True), 50, 100, (61, 70)),  # a later attempt
        (Profile(enabled=True), 0, 15, (6, 15)),
        (Profile(enabled=True), 0, 5, (2, 5)),  # without the first, which compiles
        (Profile(enabled=True), 99, 100, None),
        (Profile(steps=(20, 30)), 0, 100, (20, 30)),
        (Profile(steps=(20, 30)), 24, 100, (25, 30)),  # resumed inside of them
        (Profile(steps=(20, 30)), 30, 100, None),  # resumed after them
        (Profile(enabled=False, steps=(20, 30)), 0, 100, None),
    ],
)
def test_the_profiled_steps(
    profile: Profile, first_step: int, num_steps: int, expected: tuple[int, int] | None
) -> None:
    assert steps_to_profile(profile, first_step, num_steps) == expected


DATA, COMPUTE = RankTimes(0.9, 0.6, 0.05), RankTimes(0.9, 0.1, 0.05)
FAST, SLOW = RankTimes(0.2, 0.05, 0.75), RankTimes(0.9, 0.05, 0.05)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([DATA], "data-bound"),
        ([DATA, DATA], "data-bound"),
        ([COMPUTE, COMPUTE], "compute-bound"),
        ([FAST, FAST], "communication-bound"),  # a slow network
        ([SLOW, FAST], "communication-bound"),  # a slow rank, which the other waits for
        ([FAST, FAST, FAST, SLOW], "communication-bound"),
    ],
)
def test_what_limits_the_speed(ranks: list[RankTimes], expected: str) -> None:
    report = make_report((11, 11), [(rank, 1, 1.0) for rank in ranks], ["n"] * len(ranks), [], None)
    assert bound(shares(ranks[typical_rank(ranks)], 1.0)) == expected
    assert expected in report.splitlines()[0]
    assert all(len(line) <= 80 or line.startswith("steps") for line in report.splitlines())
    if SLOW in ranks:
        assert f"rank {ranks.index(SLOW)} on n is the slowest" in report


@given(*[st.floats(0, 1)] * 4)
def test_the_shares_are_the_whole(data: float, compute: float, wait: float, rest: float) -> None:
    rank = RankTimes(data + compute, data, wait)
    assert sum(shares(rank, sum(rank) - data + rest)) == pytest.approx(data + compute + wait + rest)
