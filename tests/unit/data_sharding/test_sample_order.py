"""The order of an epoch: nothing twice, nothing lost, no machine in it, shuffled well.

The statistical tests have fixed seeds, so that each passes always or never.
"""

import pickle
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from data_sharding.sampling.sample_order import Part, SampleOrder

Ints = NDArray[np.int64]

LEAST_P = 1e-4
MAX_STEPS = 20  # of an epoch, so that whole epochs can be looked at

examples = settings(max_examples=50)
epochs = st.one_of(st.integers(0, 3), st.integers(0, 10**6))


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    """Any order whose epoch has 1 to MAX_STEPS steps."""
    lanes_each, num_micro, per_lane = (draw(st.integers(1, 6)) for _ in range(3))
    global_batch_size = lanes_each * num_micro * per_lane
    sizes = draw(st.lists(st.integers(1, 2 * global_batch_size), max_size=MAX_STEPS // 2 - 1))
    if sum(sizes) < global_batch_size:
        sizes.append(draw(st.integers(global_batch_size, 2 * global_batch_size)))
    return SampleOrder(
        shard_sizes=np.array(sizes),
        seed=draw(st.integers(-(2**65), 2**65)),
        global_batch_size=global_batch_size,
        num_lanes=lanes_each * num_micro,
        num_micro_batches=num_micro,
        block_size=draw(st.one_of(st.integers(2, 20), st.sampled_from([64, 4096]))),
        shuffle=draw(st.sampled_from([True, True, False])),
    )


def plain(*sizes: int, **settings: Any) -> SampleOrder:
    """Return an order of one lane and whole batches, unless told otherwise."""
    return SampleOrder(
        np.array(sizes), **{"seed": 0, "num_lanes": 1, "num_micro_batches": 1} | settings
    )


def batches(order: SampleOrder, epoch: int = 0) -> Ints:
    """Return an epoch's global batches; shape (steps, global_batch_size)."""
    first = epoch * order.steps_per_epoch
    return np.stack([order.global_batch(first + step).ids for step in range(order.steps_per_epoch)])


def left_over(order: SampleOrder, epoch: int) -> set[int]:
    return set(range(order.num_samples)) - set(batches(order, epoch).ravel().tolist())


def divisors(number: int) -> Iterator[int]:
    return (part for part in range(1, number + 1) if number % part == 0)


def rank_batch(order: SampleOrder, step: int, rank: int, world_size: int) -> Ints:
    """Return what a rank reads for a step: its micro-batches, one after the other."""
    each = order.num_micro_batches // world_size
    return np.concatenate(
        [order.micro_batch(step, micro).ids for micro in range(rank * each, (rank + 1) * each)]
    )


# ---------------------------------------------------------------- every sample counts once


@examples
@given(orders(), epochs)
@example(plain(1, global_batch_size=1), 0)
@example(plain(5, 1, 3, global_batch_size=9), 1)
def test_nothing_comes_twice_and_only_the_remainder_is_left(order: SampleOrder, epoch: int) -> None:
    seen = batches(order, epoch).ravel()
    assert seen.min() >= 0
    assert seen.max() < order.num_samples == sum(order.shard_sizes)
    assert len(np.unique(seen)) == len(seen)
    assert order.num_samples - len(seen) == order.num_samples % order.global_batch_size


@pytest.mark.parametrize("sizes", [(23,), (5, 1, 9, 2, 6)])
def test_every_sample_is_left_out_equally_often(sizes: tuple[int, ...]) -> None:
    order, num_epochs = plain(*sizes, global_batch_size=8), 500
    counts = np.zeros(order.num_samples)
    for epoch in range(num_epochs):
        counts[list(left_over(order, epoch))] += 1
    assert counts.sum() == 7 * num_epochs
    share = 7 / 23
    limit = 4 * np.sqrt(num_epochs * share * (1 - share))
    assert abs(counts - num_epochs * share).max() < limit


def test_an_unshuffled_epoch_is_the_shards_as_they_lie() -> None:
    order = plain(3, 8, 2, global_batch_size=4, shuffle=False)
    for epoch in 0, 1:
        assert batches(order, epoch).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    lanes = plain(12, global_batch_size=4, num_lanes=2, shuffle=False)
    assert batches(lanes).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


# ---------------------------------------------------------------- no machine in it


@examples
@given(orders(), st.integers(0, 10**9))
def test_every_world_size_sees_the_same_batch(order: SampleOrder, step: int) -> None:
    expected = order.global_batch(step).ids
    assert expected.shape == (order.global_batch_size,)
    for world_size in divisors(order.num_micro_batches):
        parts = [rank_batch(order, step, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {order.global_batch_size // world_size}
        assert np.array_equal(np.concatenate(parts), expected)


@examples
@given(orders(), st.integers(0, 10**9))
def test_the_number_of_micro_batches_only_cuts_the_batch(order: SampleOrder, step: int) -> None:
    expected = order.global_batch(step).ids
    for number in divisors(order.num_lanes):
        other = replace(order, num_micro_batches=number)
        parts = [other.micro_batch(step, micro).ids for micro in range(number)]
        assert {part.shape for part in parts} == {(other.micro_batch_size,)}
        assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(expected))


@given(st.integers(1, 40), st.integers(1, 40))
def test_parts_are_equal_ranges_of_the_rows(count: int, size: int) -> None:
    parts = [Part(index, count).rows(count * size) for index in range(count)]
    assert {len(part) for part in parts} == {size}
    assert np.array_equal(np.concatenate(parts), np.arange(count * size))


@examples
@given(orders(), st.integers(0, 10**9))
def test_a_rank_that_shares_a_micro_batch_reads_lanes_of_its_own(
    order: SampleOrder, step: int
) -> None:
    per_lane = order.global_batch_size // order.num_lanes
    whole = order.micro_batch(step, 0)
    for count in divisors(order.num_lanes // order.num_micro_batches):
        lanes = np.arange(0, order.num_lanes, order.num_micro_batches)
        for index, own in enumerate(np.split(lanes, count)):
            part = whole.take(Part(index, count).rows(len(whole.ids)))
            alone = [order._draw(step, own[i : i + 1]).ids for i in range(len(own))]
            assert len(part.ids) == len(own) * per_lane
            assert np.array_equal(part.ids, np.concatenate(alone))


# ---------------------------------------------------------------- the step is the only clock


@examples
@given(orders(), st.lists(st.integers(0, 3 * MAX_STEPS), min_size=1, max_size=20))
def test_a_step_can_be_looked_up_without_those_before_it(
    order: SampleOrder, steps: list[int]
) -> None:
    sequence = np.concatenate([batches(order, epoch) for epoch in range(2)])
    resumed = pickle.loads(pickle.dumps(replace(order)))
    for step in (step % len(sequence) for step in steps):
        assert np.array_equal(resumed.global_batch(step).ids, sequence[step])
        assert (resumed.global_batch(step).passes == step // order.steps_per_epoch).all()


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    seen = [
        batches(plain(700, 324, seed=seed, global_batch_size=32), epoch)
        for seed in (0, 1, -1, 2**64)
        for epoch in (0, 1, 2, 1000)
    ]
    for i, ours in enumerate(seen):
        for theirs in seen[:i]:
            assert (ours == theirs).mean() < 0.01
            assert abs(stats.spearmanr(ours.ravel(), theirs.ravel()).statistic) < 0.15


def test_lanes_and_blocks_are_shuffled_independently() -> None:
    order = plain(4 * 1024, global_batch_size=64, num_lanes=4, block_size=1024)
    lanes = batches(order).reshape(-1, 4, 16).transpose(1, 0, 2).reshape(4, -1)
    blocks = [*lanes, *batches(order, epoch=1).reshape(-1, 4, 16).transpose(1, 0, 2).reshape(4, -1)]
    for i in range(8):
        for j in range(i):
            assert stats.spearmanr(blocks[i], blocks[j]).pvalue > LEAST_P


def test_known_batches() -> None:
    """A run that is resumed years later goes on in its order."""
    small = SampleOrder(np.array([5, 3, 9, 7]), 7, 8, 4, 2, block_size=3)
    assert [small.global_batch(step).ids.tolist() for step in (0, 1, 2, 3, 3 * 10**6)] == [
        [13, 12, 18, 19, 1, 2, 5, 7],
        [15, 14, 20, 21, 0, 3, 9, 6],
        [11, 16, 22, 23, 17, 4, 8, 10],
        [11, 10, 22, 23, 16, 17, 2, 1],
        [12, 11, 5, 23, 19, 17, 2, 3],
    ]
    large = SampleOrder(np.array([1200, 900, 1000] * 2), 7, 8, 4, 2, block_size=64)
    assert [large.micro_batch(step, 1).ids.tolist() for step in (0, 774, 775, 10**9)] == [
        [3472, 3419, 2422, 2437],
        [1856, 1827, 5158, 5120],
        [797, 803, 5012, 5023],
        [2123, 2081, 4229, 4241],
    ]


# ---------------------------------------------------------------- shuffled well


def test_a_lane_no_longer_than_a_block_is_shuffled_without_a_trace() -> None:
    order = plain(4096, global_batch_size=16, block_size=4096)
    for epoch in range(5):
        ids = batches(order, epoch).ravel()
        assert stats.spearmanr(np.arange(4096), ids).pvalue > LEAST_P
        assert stats.spearmanr(ids[:-1], ids[1:]).pvalue > LEAST_P
        assert (abs(np.diff(ids)) == 1).sum() < 10  # 2 are expected


def test_all_orders_of_a_tiny_lane_are_equally_likely() -> None:
    order = plain(4, global_batch_size=4)
    codes = [int("".join(map(str, order.global_batch(epoch).ids))) for epoch in range(1500)]
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEAST_P


def displacements(order: SampleOrder) -> NDArray[np.float64]:
    """Return how far samples come from their places on disk, for one lane and one shard.

    The sequence is rotated by a random offset first: that is, up to the turn that centres them.
    """
    ids, size = batches(order).ravel(), order.num_samples
    turned = (ids - np.arange(size)) % size
    centred = (turned - turned[0] + size // 2) % size - size // 2
    return centred - (centred.max() + centred.min()) / 2


@pytest.mark.parametrize("block_size", [256, 255])
def test_in_a_long_lane_a_sample_comes_from_anywhere_in_two_blocks(block_size: int) -> None:
    """Its place is uniform in the two blocks around, so half of the samples change their block."""
    num_blocks = 64
    order = plain(num_blocks * block_size, global_batch_size=block_size, block_size=block_size)
    moved = displacements(order) / block_size
    assert abs(moved).max() <= 1.5
    assert abs(moved).mean() == pytest.approx(13 / 24, rel=0.02)
    rng = np.random.default_rng(0)
    ideal = rng.uniform(-1, 1, moved.size) - rng.uniform(-0.5, 0.5, moved.size)
    assert stats.ks_2samp(moved, ideal).pvalue > LEAST_P


def test_neighbours_on_disk_are_rarely_neighbours_in_the_epoch() -> None:
    block_size = 256
    ids = batches(plain(64 * block_size, global_batch_size=256, block_size=block_size)).ravel()
    expected = len(ids) / block_size
    assert abs((abs(np.diff(ids)) == 1).sum() - expected) < 4 * np.sqrt(expected)


def test_shards_come_in_random_order() -> None:
    """Any shard may be the first, and any other may follow it."""
    order = plain(*[64] * 20, global_batch_size=64, block_size=2)
    shards = np.array([batches(order, epoch)[:2] // 64 for epoch in range(100)])
    main = np.array([[np.bincount(step).argmax() for step in epoch] for epoch in shards])
    assert stats.chisquare(np.bincount(main[:, 0], minlength=20)).pvalue > LEAST_P
    follows = (main[:, 1] - main[:, 0]) % 20
    assert stats.chisquare(np.bincount(follows, minlength=20)[1:]).pvalue > LEAST_P


def class_counts(num_lanes: int, block_size: int) -> Ints:
    """Return how many samples of the first quarter of the ids step 3 holds, for many epochs."""
    order = plain(256, 300, 468, global_batch_size=32, num_lanes=num_lanes, block_size=block_size)
    steps = [epoch * order.steps_per_epoch + 3 for epoch in range(600)]
    return np.array([(order.global_batch(step).ids < 256).sum() for step in steps])


CHANCE = stats.hypergeom(1024, 256, 32)


def test_sorted_classes_mix_as_by_chance_in_one_lane_and_block() -> None:
    counts = class_counts(num_lanes=1, block_size=1024)
    likely = np.arange(4, 13)
    expected = len(counts) * np.concatenate([[CHANCE.cdf(3)], CHANCE.pmf(likely), [CHANCE.sf(12)]])
    observed = np.bincount(np.clip(counts, 3, 13), minlength=14)[3:]
    assert stats.chisquare(observed, expected).pvalue > LEAST_P


def test_sorted_classes_are_dealt_out_more_evenly_than_by_chance_over_lanes() -> None:
    """A lane is a stratum: a batch takes as many samples of each, whatever their classes."""
    counts = class_counts(num_lanes=8, block_size=1024)
    assert stats.ttest_1samp(counts, CHANCE.mean()).pvalue > LEAST_P
    assert counts.var() < CHANCE.var() / 2


def test_every_micro_batch_has_all_classes_where_a_shard_is_sorted_by_class() -> None:
    """Batch norm sees micro-batches: of neighbouring lanes they would have one class or two."""
    order = plain(640, global_batch_size=64, num_lanes=32, num_micro_batches=4)
    for step in range(3 * order.steps_per_epoch):
        for micro in range(4):
            classes = order.micro_batch(step, micro).ids // 160
            assert np.bincount(classes, minlength=4).min() >= 2  # 4 if lanes ended with classes


def test_sorted_classes_stay_together_where_lanes_are_much_longer_than_blocks() -> None:
    """What blocks cannot do: such data must be shuffled when it is written to shards."""
    counts = class_counts(num_lanes=1, block_size=32)
    assert counts.var() > 10 * CHANCE.var()


# ---------------------------------------------------------------- a rank reads few shards


@pytest.mark.parametrize("seed", range(2))
def test_a_rank_reads_few_shards_at_a_time_and_a_shard_is_read_by_few(seed: int) -> None:
    """With shards of two blocks: at most two of them in a step, three while a block is read."""
    rng = np.random.default_rng(seed)
    sizes = tuple(rng.integers(128, 200, 300).tolist())
    num_lanes, per_lane, block_size = 16, 2, 64
    order = plain(
        *sizes,
        seed=seed,
        global_batch_size=num_lanes * per_lane,
        num_lanes=num_lanes,
        block_size=block_size,
    )
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    lanes = shard_of[batches(order)].reshape(-1, num_lanes, per_lane).transpose(1, 0, 2)
    for lane in lanes:
        window = block_size // per_lane
        assert max(len(np.unique(step)) for step in lane) <= 2
        spans = (lane[start : start + window] for start in range(0, len(lane), window // 2))
        assert max(len(np.unique(span)) for span in spans) <= 4
    readers = [len({lane for lane in range(num_lanes) if s in lanes[lane]}) for s in range(300)]
    assert max(readers) <= 3  # two that meet in it; a third where the sequence begins and ends
    assert np.mean(readers) < 1.1


def test_a_million_shards_and_four_thousand_ranks_cost_little() -> None:
    """Ten thousand million samples: an array of them would take 80 GB."""
    order = plain(
        *([10_000] * 1_000_000),
        global_batch_size=4 * 4096,
        num_lanes=4096,
        num_micro_batches=4096,
    )
    tracemalloc.start()
    start_s = time.process_time()
    order.micro_batch(10**5, 4095)
    first_s = time.process_time() - start_s
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first_s < 1.5
    assert peak_bytes < 200e6

    start_s = time.process_time()
    seen = [order.micro_batch(12_000 * i, 80 * i).ids for i in range(50)]  # all over the epoch
    assert (time.process_time() - start_s) / 50 < 0.005
    assert len(np.unique(seen)) == 200


# ---------------------------------------------------------------- repeated augmentation


@pytest.mark.parametrize("repeats", [2, 4])
def test_repeats_share_a_micro_batch_and_differ_in_their_pass(repeats: int) -> None:
    order = SampleOrder(np.array([50, 77, 61]), 3, 16, 4, 2, block_size=8, repeats=repeats)
    assert order.steps_per_pass == 188 // (16 // repeats)
    drawn: dict[int, list[int]] = {}
    for step in range(2 * order.steps_per_pass):
        for micro in range(2):
            ids, passes = order.micro_batch(step, micro)
            assert len(ids) == 8
            assert (ids.reshape(repeats, -1) == ids[: 8 // repeats]).all()
            assert (ids != np.roll(ids, 1)).all()  # whom mixup takes
            for sample, number in zip(ids.tolist(), passes.tolist(), strict=True):
                drawn.setdefault(sample, []).append(number)
    left_out = 2 * (188 - order.steps_per_pass * 16 // repeats)
    once, twice = list(range(repeats)), list(range(2 * repeats))
    others = [numbers for numbers in drawn.values() if numbers != twice]
    assert len(others) <= left_out
    assert all(numbers in (once, twice[repeats:]) for numbers in others)


@examples
@given(orders(), st.integers(2, 4), st.integers(0, 10**9))
def test_repeats_are_the_plain_order_more_slowly(
    order: SampleOrder, repeats: int, step: int
) -> None:
    batch = order.global_batch_size * repeats
    assume(order.num_samples >= batch)
    repeated = replace(order, global_batch_size=batch, repeats=repeats)
    for micro in range(order.num_micro_batches):
        once, often = order.micro_batch(step, micro), repeated.micro_batch(step, micro)
        assert np.array_equal(often.ids.reshape(repeats, -1), [once.ids] * repeats)
        first = once.passes * repeats
        assert np.array_equal(often.passes.reshape(repeats, -1), [*first + np.c_[:repeats]])


# ---------------------------------------------------------------- impossible arithmetic


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_lanes": 3}, "num_lanes=3 does not divide global_batch_size=8"),
        ({"repeats": 3}, "repeats=3 does not divide the 8 samples of a lane in a step"),
        ({"num_lanes": 16}, "num_lanes=16 does not divide global_batch_size=8"),
        (
            {"num_lanes": 4, "num_micro_batches": 3},
            "num_micro_batches=3 does not divide num_lanes=4",
        ),
        ({"num_micro_batches": 2}, "num_micro_batches=2 does not divide num_lanes=1"),
        (
            {"global_batch_size": 31},
            "a global batch of 31 cannot be filled from 30 samples: an epoch would have no step",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        plain(10, 20, **{"global_batch_size": 8} | settings)
