"""Sizes grow from the first to the last in multiples, and depend on the step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sharding.transforms.progressive_resize import ImageSizeSchedule


def test_without_a_curriculum_all_sizes_are_the_last():
    sizes = ImageSizeSchedule(224)
    assert {sizes(step) for step in (0, 1, 10**9)} == {224}
    assert sizes.largest == 224
    assert sizes.num_of_last(10**9) == 10**9


def test_sizes_are_those_of_ffcv():
    """Its get_resolution for epochs 0..15 with 160 -> 192 between 6 and 13, multiples of 32."""
    sizes = ImageSizeSchedule(192, 160, from_step=6, to_step=13, multiple_of=32)
    assert [sizes(step) for step in range(16)] == [160] * 10 + [192] * 6


@given(st.integers(1, 256), st.integers(1, 256), st.integers(0, 50), st.integers(1, 50))
def test_sizes_stay_between_the_ends_and_reach_the_last(first, last, start, length):
    sizes = ImageSizeSchedule(last, first, start, start + length, multiple_of=8)
    schedule = [sizes(step) for step in range(start + length + 2)]
    assert schedule == sorted(schedule, reverse=first > last)
    assert schedule[-1] == last
    assert all(min(first, last) <= size <= sizes.largest for size in schedule)
    assert all(size % 8 == 0 or size in (first, last) for size in schedule)
    for num_steps in (0, start, start + length // 2, start + length + 2):
        area = sum(size**2 for size in schedule[:num_steps])
        assert sizes.num_of_last(num_steps) == pytest.approx(area / last**2)
