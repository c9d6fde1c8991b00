"""The order of a mixture: exact quotas a step, each source's samples once in its own passes."""

import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_sharding.sampling.mixed_order import MixedOrder, divide_batch, divide_lanes, mix_orders

Ints = NDArray[np.int64]

examples = settings(max_examples=15)
steps = st.one_of(st.integers(0, 50), st.integers(0, 10**9))


@st.composite
def mixtures(draw: st.DrawFn) -> MixedOrder:
    """Any mixture of up to four sources, of which each has enough samples for a step."""
    num_micro, repeats = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    quotas = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    quotas = [quota * num_micro * repeats for quota in quotas]
    sizes = [[*draw(st.lists(st.integers(1, 9), max_size=3)), quota] for quota in quotas]
    return mix_orders(
        [np.array(shards) for shards in sizes],
        quotas,
        seed=draw(st.integers(0, 2**32)),
        num_lanes=draw(st.integers(1, 32)),
        num_micro_batches=num_micro,
        block_size=draw(st.sampled_from([2, 7, 4096])),
        repeats=repeats,
    )


def global_batch(order: MixedOrder, step: int) -> Ints:
    return np.concatenate(
        [order.micro_batch(step, micro).ids for micro in range(order.num_micro_batches)]
    )


def source_of(order: MixedOrder, ids: Ints) -> Ints:
    return np.searchsorted(order.first_ids, ids, side="right") - 1


@examples
@given(mixtures(), steps)
def test_every_micro_batch_has_the_quotas_of_the_sources(order: MixedOrder, step: int) -> None:
    mixed = order.micro_batch(step, order.num_micro_batches - 1)
    expected = [source.micro_batch(step, order.num_micro_batches - 1) for source in order.sources]
    assert [len(draw.ids) for draw in expected] == [s.micro_batch_size for s in order.sources]
    drawn = list(zip(mixed.ids.tolist(), mixed.passes.tolist(), strict=True))
    of_sources = [
        (sample + first, passed)
        for draw, first in zip(expected, order.first_ids, strict=True)
        for sample, passed in np.stack(draw, 1).tolist()
    ]
    assert sorted(drawn) == sorted(of_sources)
    copies = mixed.ids.reshape(order.sources[0].repeats, -1)
    assert (copies == copies[0]).all()  # a sample's copies are as far apart as they can be
    assert len(np.unique(copies[0])) == len(copies[0])


@examples
@given(mixtures(), st.integers(0, 3))
def test_each_source_is_drawn_as_often_as_its_own_pass_says(order: MixedOrder, which: int) -> None:
    number = which % len(order.sources)
    source, first = order.sources[number], order.first_ids[number]
    begin = which * source.steps_per_pass
    ids = np.concatenate(
        [global_batch(order, begin + step) for step in range(source.steps_per_pass)]
    )
    own = ids[source_of(order, ids) == number] - first
    times = np.bincount(own, minlength=source.num_samples)
    assert set(times.tolist()) <= {0, source.repeats}
    left = source.num_samples % (source.global_batch_size // source.repeats)
    assert (times == 0).sum() == left


def test_an_order_that_was_sent_to_a_worker_is_the_same() -> None:
    order = mixture(8, 4)
    before = order.micro_batch(100, 0).ids
    assert np.array_equal(before, pickle.loads(pickle.dumps(order)).micro_batch(100, 0).ids)


def mixture(*quotas: int, **options: Any) -> MixedOrder:
    defaults = {"seed": 0, "num_lanes": 8, "num_micro_batches": 1, "block_size": 64}
    return mix_orders([np.array([500])] * len(quotas), quotas, **defaults | options)


def test_neighbours_are_of_any_two_sources() -> None:
    order, pairs = mixture(12, 4), np.zeros((2, 2))
    for step in range(150):
        sources = source_of(order, order.micro_batch(step, 0).ids)
        np.add.at(pairs, (sources, np.roll(sources, 1)), 1)
    of_random_rows = np.array([[12 * 11, 12 * 4], [12 * 4, 4 * 3]]) / (16 * 15)
    assert abs(pairs / pairs.sum() - of_random_rows).max() < 0.03


def test_sources_of_equal_sizes_have_orders_of_their_own() -> None:
    first, second = mixture(8, 8).sources
    assert not np.array_equal(first.micro_batch(0, 0).ids, second.micro_batch(0, 0).ids)


def test_sources_that_do_not_share_micro_batches_are_refused() -> None:
    orders = [mixture(8, num_micro_batches=number).sources[0] for number in (2, 4)]
    with pytest.raises(ValueError, match="num_micro_batches"):
        MixedOrder(tuple(orders), seed=0)


weights = st.lists(st.one_of(st.integers(1, 1000), st.floats(1e-3, 1e3)), min_size=1, max_size=6)


@examples
@given(weights, st.integers(1, 2000), st.integers(1, 64))
def test_a_batch_is_divided_as_nearly_as_multiples_allow(
    weights: list[float], num: int, multiple: int
) -> None:
    quotas = divide_batch(weights, num * multiple, multiple)
    assert sum(quotas) == num * multiple
    exact = [Fraction(str(weight)) for weight in weights]
    for quota, weight in zip(quotas, exact, strict=True):
        assert quota % multiple == 0
        assert abs(quota - weight / sum(exact) * num * multiple) < multiple


def test_decimal_weights_divide_a_batch_exactly() -> None:
    assert divide_batch([0.7, 0.2, 0.1], 100, 10) == [70, 20, 10]
    assert divide_batch([1, 1, 1], 64, 1) == [22, 21, 21]
    assert divide_batch([1, 1000], 8, 1) == [0, 8]


@examples
@given(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.integers(1, 8), st.integers(1, 99))
def test_lanes_divide_the_samples_of_their_source(
    each: list[int], num_micro: int, num_lanes: int
) -> None:
    samples = [number * num_micro for number in each]
    for lanes, number in zip(divide_lanes(num_lanes, samples, num_micro), samples, strict=True):
        assert number % lanes == lanes % num_micro == 0


def test_lanes_are_divided_by_quotas() -> None:
    assert divide_lanes(32, [192, 64], 4) == [24, 8]
    assert divide_lanes(32, [4 * 61, 12], 4) == [4, 4]  # 61 is a prime number
    assert divide_lanes(32, [38, 13, 13], 1) == [19, 13, 13]  # rather more of them than too few
