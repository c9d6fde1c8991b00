"""Figures in the forms of their kinds."""

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import metrics, number_format
from orchestrator.number_format import format_duration, format_metric, pluralize


def test_the_examples_hold() -> None:
    assert doctest.testmod(metrics).failed == doctest.testmod(number_format).failed == 0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("val/loss", 1.7e29, "1.700e+29"),
        ("val/top1", math.nan, "nan"),
        ("eval/ten-crop-224-of-256/real_top1", 70.0, "70.00"),
        ("perf/images_per_s", 1.31, "1.31"),
        ("perf/images_per_s", None, "-"),
        ("train/lr", 0.000123456, "0.0001235"),
        ("training_s", 41.4, "0:00:41"),
    ],
)
def test_a_figure_has_the_form_of_its_kind(name: str, value: float | None, text: str) -> None:
    assert format_metric(name, value) == text


@given(st.integers(0, 10**7))
def test_a_clock_tells_all_seconds(seconds: int) -> None:
    hours, minutes, rest = map(int, format_duration(seconds).split(":"))
    assert 3600 * hours + 60 * minutes + rest == seconds
    assert max(minutes, rest) < 60


def test_what_is_one_is_no_plural() -> None:
    nouns = ("run", "class", "batch", "image")
    assert [pluralize(1, noun) for noun in nouns] == ["1 run", "1 class", "1 batch", "1 image"]
    assert [pluralize(0, noun) for noun in nouns] == [
        "0 runs",
        "0 classes",
        "0 batches",
        "0 images",
    ]
