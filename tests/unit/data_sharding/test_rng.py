"""Every number is a function of its key, never changes, and is statistically random.

The statistical tests have fixed seeds, so that each passes always or never.
"""

from itertools import permutations
from math import isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from data_sharding.rng import UInts, derive_key, permutation, permute_index, splitmix64, uniform

LEAST_P = 1e-4
LARGEST = 2**62

examples = settings(max_examples=50)

seeds = st.integers(-(2**70), 2**70)
counters = st.integers(0, 2**64 - 1)
sizes = st.one_of(
    st.integers(1, LARGEST),
    st.integers(0, 62).map(lambda bits: 2**bits),
    st.integers(2, 2**31 - 1).map(lambda root: root**2 + 1),  # a square root is just missed
    st.integers(2, 2**31).map(lambda root: root**2 - 1),
)


def keys(num: int, purpose: str = "test") -> UInts:
    return derive_key(0, purpose, np.arange(num))


def p_of_counts(draws: NDArray[np.int64], num_cells: int) -> float:
    """Return how likely it is that integers are drawn evenly from range(num_cells)."""
    counts = np.bincount(draws.ravel(), minlength=num_cells)
    assert len(counts) == num_cells
    return float(stats.chisquare(counts).pvalue)


def tables(size: int, num: int) -> NDArray[np.int64]:
    """Return the whole permutation of range(size) for `num` keys; shape (num, size)."""
    return permute_index(np.arange(size), size, keys(num, f"table-{size}")[:, None])


# ---------------------------------------------------------------- the numbers never change


def test_mixing_is_that_of_splitmix64() -> None:
    """The first outputs of its authors' program for the seed 0."""
    counters = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 4, dtype=np.uint64)
    assert splitmix64(counters).tolist() == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((0, "augment"), 0xCF6F58C8C4254ADF),
        ((1, "augment"), 0x83E3162DD7311618),
        ((0, "noise"), 0x65FC7DAB04510DB9),
        ((0, "augment", 0), 0x5EE1F754140302FF),
        ((0, "augment", 0, 0), 0x66AC914E970C9FEF),
        ((0, "augment", 3, 7), 0x3DD33A83BFD53635),
        ((-1, "x", 2**64 - 1), 0x1FE20445B8D6273A),
    ],
)
def test_known_keys(arguments: tuple[int, str], key: int) -> None:
    assert derive_key(*arguments).tolist() == [key]


def test_known_floats() -> None:
    draws = uniform(derive_key(0, "augment", 3, 7), 4)
    expected = [0.5460900779572143, 0.9306695731205099, 0.7158024364485163, 0.7438224030714377]
    assert draws.tolist() == [expected]


@pytest.mark.parametrize(
    ("size", "start"),
    [
        (2, [0, 1]),
        (3, [0, 1, 2]),
        (10, [8, 6, 3, 0, 9, 2, 1, 7, 4, 5]),
        (4096, [3934, 665, 1499, 2000, 3453, 2035, 1687, 3778, 3887, 1972]),
        (10**6, [104957, 184310]),
        (10**12, [201948277914, 811360306221]),
        (LARGEST, [4331900164142335464, 8194832960262046]),
    ],
)
def test_known_permutations(size: int, start: list[int]) -> None:
    assert permute_index(np.arange(len(start)), size, derive_key(0, "order", 5)).tolist() == start


# ---------------------------------------------------------------- elementwise


def test_permutation_never_changes() -> None:
    pinned = [5, 2, 7, 3, 6, 0, 9, 4, 1, 8]  # from a Philox4x64-10 that is not numpy's
    assert permutation(0, "a", 10).tolist() == pinned
    assert permutation(1, "a", 10).tolist() != pinned
    assert permutation(0, "b", 10).tolist() != pinned
    assert sorted(permutation(3, "c", 1000).tolist()) == list(range(1000))
    assert permutation(0, "a", 0).tolist() == []


@examples
@given(seeds, st.text("az/é犬\0"), st.lists(counters, min_size=1, max_size=20), counters)
def test_arrays_are_drawn_elementwise(seed: int, purpose: str, ids: list[int], epoch: int) -> None:
    together = derive_key(seed, purpose, epoch, np.array(ids, dtype=np.uint64))
    assert together.shape == (len(ids),)
    assert together.tolist() == [derive_key(seed, purpose, epoch, i).item() for i in ids]
    draws = uniform(together, 3)
    assert draws.shape == (len(ids), 3)
    assert np.array_equal(draws, np.concatenate([uniform(key[None], 3) for key in together]))
    assert np.array_equal(uniform(together, 2), draws[:, :2])


@examples
@given(st.lists(sizes, min_size=1, max_size=20), st.data())
def test_permutations_are_computed_elementwise(many: list[int], data: st.DataObject) -> None:
    indices = [data.draw(st.integers(0, size - 1)) for size in many]
    key = keys(len(many))
    together = permute_index(indices, many, key)
    apart = [permute_index(i, size, k[None]) for i, size, k in zip(indices, many, key, strict=True)]
    assert together.tolist() == np.concatenate(apart).tolist()


def test_arguments_are_not_written_to() -> None:
    index, size, key = np.arange(9, dtype=np.uint64), np.full(9, 9, dtype=np.uint64), keys(9)
    permute_index(index, size, key)
    uniform(key, 3)
    assert index.tolist() == list(range(9))
    assert size.tolist() == [9] * 9
    assert np.array_equal(key, keys(9))


# ---------------------------------------------------------------- keys


def test_different_arguments_give_different_keys() -> None:
    key = [
        derive_key(seed, "test", epoch, np.arange(100)) for seed in range(50) for epoch in range(50)
    ]
    key += [derive_key(0, "test", np.arange(1000)), derive_key(0, "test"), derive_key(1, "0/test")]
    key += [derive_key(0, purpose, np.arange(1000)) for purpose in ("", "tes", "testt", "test ")]
    found = np.concatenate(key)
    assert len(np.unique(found)) == len(found)


def test_every_bit_of_a_counter_changes_half_the_bits_of_its_key() -> None:
    start = np.arange(1000, dtype=np.uint64)
    for bit in range(64):
        flipped = start ^ (np.uint64(1) << np.uint64(bit))
        changed = derive_key(0, "test", start) ^ derive_key(0, "test", flipped)
        ones = np.unpackbits(changed.view(np.uint8).reshape(-1, 8), axis=1)
        assert abs(ones.mean() - 0.5) < 0.01
        assert np.all(abs(ones.mean(axis=0) - 0.5) < 0.1)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(derive_key(0, "shift", np.arange(50_000)), id="purpose"),
        pytest.param(derive_key(1, "test", np.arange(50_000)), id="seed"),
        pytest.param(derive_key(0, "test", np.arange(50_000) + 1), id="neighbour"),
        pytest.param(derive_key(0, "test", np.arange(50_000), 0), id="number of counters"),
    ],
)
def test_keys_that_differ_in_one_thing_are_independent(other: UInts) -> None:
    ours, theirs = uniform(keys(50_000), 3), uniform(other, 3)
    for i in range(3):
        for j in range(3):
            assert stats.pearsonr(ours[:, i], theirs[:, j]).pvalue > LEAST_P
            table = np.histogram2d(ours[:, i], theirs[:, j], bins=10, range=[[0, 1]] * 2)[0]
            assert stats.chisquare(table.ravel()).pvalue > LEAST_P


# ---------------------------------------------------------------- floats


def test_floats_are_uniform() -> None:
    draws = uniform(keys(100_000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert p_of_counts((column * 1000).astype(np.int64), 1000) > LEAST_P
        assert stats.kstest(column, "uniform").pvalue > LEAST_P


def test_draws_of_one_key_are_independent() -> None:
    draws = uniform(keys(50_000), 4)
    correlation = np.corrcoef(draws.T) - np.eye(4)
    assert abs(correlation).max() < 4 / np.sqrt(len(draws))
    stream = uniform(keys(1), 200_000)[0]
    assert stats.pearsonr(stream[:-1], stream[1:]).pvalue > LEAST_P
    assert stats.kstest(stream, "uniform").pvalue > LEAST_P


# ---------------------------------------------------------------- permutations


@pytest.mark.parametrize("purpose", ["a", "b"])
def test_small_ranges_are_permuted(purpose: str) -> None:
    for size in range(1, 301):
        places = permute_index(np.arange(size), size, derive_key(0, purpose, size))
        assert np.array_equal(np.sort(places), np.arange(size))


@examples
@given(sizes, seeds, st.data())
def test_large_ranges_are_permuted(size: int, seed: int, data: st.DataObject) -> None:
    """No two of many neighbours, and of indices from everywhere, are sent to the same place."""
    start = data.draw(st.integers(0, max(0, size - 2000)))
    index = set(range(start, min(start + 2000, size))) | {0, size // 2, size - 1}
    index |= data.draw(st.sets(st.integers(0, size - 1), max_size=20))
    places = permute_index(sorted(index), size, derive_key(seed, "test"))
    assert places.min() >= 0
    assert places.max() < size
    assert len(np.unique(places)) == len(index)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_permutations_of_few_are_equally_likely(size: int) -> None:
    codes = {code: number for number, code in enumerate(permutations(range(size)))}
    drawn = np.array([codes[tuple(row)] for row in tables(size, 20_000).tolist()])
    assert p_of_counts(drawn, len(codes)) > LEAST_P


@pytest.mark.parametrize("size", [*range(2, 9), 16, 25, 49])
def test_an_index_is_sent_everywhere_equally_often(size: int) -> None:
    sent = tables(size, 20_000)
    for index in {0, size // 2, size - 1}:
        assert p_of_counts(sent[:, index], size) > LEAST_P


@pytest.mark.parametrize("size", [*range(3, 10), 16, 25])
def test_two_indices_are_sent_to_all_pairs_of_places_equally_often(size: int) -> None:
    sent = tables(size, 10_000)
    for i, j in {(0, 1), (0, size - 1), (size - 2, size - 1)}:
        pair = sent[:, i] * (size - 1) + sent[:, j] - (sent[:, j] > sent[:, i])
        assert p_of_counts(pair, size * (size - 1)) > LEAST_P


@pytest.mark.parametrize("size", [7, 16, 100, 256, 1000])
def test_neighbours_stay_neighbours_by_chance_only(size: int) -> None:
    steps = abs(np.diff(tables(size, 500_000 // size), axis=1))
    expected = steps.size * 2 / size
    assert abs((steps == 1).sum() - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("size", [10**6, 2**40 + 1, isqrt(LARGEST) ** 2, LARGEST])
def test_large_ranges_are_filled_evenly(size: int) -> None:
    index = np.linspace(0, size - 1, 20_000, dtype=np.int64)
    for places in permute_index(index, size, keys(1)), permute_index(7, size, keys(20_000)):
        assert stats.kstest(places / size, "uniform").pvalue > LEAST_P
        assert stats.pearsonr(places[:-1] / size, places[1:] / size).pvalue > LEAST_P


@pytest.mark.parametrize("size", [8, 10**6])
def test_neighbouring_keys_permute_independently(size: int) -> None:
    places = permute_index(3, size, keys(50_000)) / size
    for distance in 1, 2, 8:
        assert stats.pearsonr(places[:-distance], places[distance:]).pvalue > LEAST_P
