"""Views: torchvision's distributions, drawn from keys.

The statistical tests have fixed seeds, so that each passes always or never.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import v2

from data_sharding.rng import derive_key, uniform
from data_sharding.transforms.crops import (
    NUM_RANDOMS,
    CropFn,
    CropSpec,
    Randoms,
    random_resized_crop,
    resize_crop,
)
from data_sharding.transforms.padded_crop import PaddedCrop

LEAST_P = 1e-4
USUAL, SCALE = (3 / 4, 4 / 3), (0.08, 1.0)

examples = settings()
sides = st.one_of(st.integers(1, 12), st.integers(1, 20_000))
draws = st.lists(st.floats(0, 1, exclude_max=True), min_size=NUM_RANDOMS, max_size=NUM_RANDOMS).map(
    np.array
)


def many_draws(num: int) -> Randoms:
    return uniform(derive_key(0, "augment", np.arange(num)), NUM_RANDOMS)


# ---------------------------------------------------------------- random resized crop


def boxes(choose: CropFn, width: int, height: int, num: int) -> NDArray[np.float64]:
    """Return left, top, width and height of many crops; shape (num, 4)."""
    boxes = [choose(width, height, draw).box for draw in many_draws(num)]
    left, top, right, bottom = np.array(boxes, dtype=float).T
    return np.stack([left, top, right - left, bottom - top], axis=1)


def boxes_of_torchvision(
    transform: v2.RandomResizedCrop, width: int, height: int, num: int
) -> NDArray[np.float64]:
    image = [torch.empty(1, height, width, dtype=torch.uint8)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params(image) for _ in range(num)]
    return np.array([[p["left"], p["top"], p["width"], p["height"]] for p in params], dtype=float)


def figures(boxes: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    left, top, width, height = boxes.T
    return [left, top, width, height, width * height, width / height, left + width, top + height]


@pytest.mark.parametrize(
    ("width", "height", "scale", "ratio"),
    [
        (500, 375, SCALE, USUAL),
        (375, 500, SCALE, USUAL),
        (32, 32, SCALE, USUAL),
        (7, 5, SCALE, USUAL),
        (1024, 768, (0.25, 0.5), (0.5, 3.0)),
        (900, 300, SCALE, USUAL),  # many tries are too tall
        (1400, 100, SCALE, USUAL),  # some crops are the fallback
        (100, 1400, SCALE, USUAL),
        (4000, 200, (0.3, 1.0), USUAL),  # all are: no try ever fits
        (200, 4000, (0.3, 1.0), USUAL),
    ],
)
def test_crops_have_the_distribution_of_torchvision(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    choose = partial(random_resized_crop, scale=scale, ratio=ratio, hflip_prob=0.5)
    ours = boxes(choose, width, height, 4000)
    theirs = boxes_of_torchvision(v2.RandomResizedCrop(224, scale, ratio), width, height, 4000)
    for our, their in zip(figures(ours), figures(theirs), strict=True):
        assert stats.ks_2samp(our, their, method="asymp").pvalue > LEAST_P


def test_all_of_few_positions_are_drawn() -> None:
    """What a coarser comparison would miss: the last column, and rounding of the sides."""
    choose = partial(random_resized_crop, scale=(0.25, 0.36), ratio=(1.0, 1.0), hflip_prob=0.5)
    ours = boxes(choose, 6, 7, 3000)
    theirs = boxes_of_torchvision(v2.RandomResizedCrop(6, (0.25, 0.36), (1, 1)), 6, 7, 3000)
    cells = [np.unique(boxes, axis=0, return_counts=True) for boxes in (ours, theirs)]
    assert np.array_equal(cells[0][0], cells[1][0])
    assert stats.chi2_contingency([counts for _, counts in cells]).pvalue > LEAST_P


@examples
@given(sides, sides, draws)
def test_crops_are_inside_the_image(width: int, height: int, draw: Randoms) -> None:
    view = random_resized_crop(width, height, draw, scale=SCALE, ratio=USUAL, hflip_prob=0.5)
    left, top, right, bottom = view.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize(
    ("width", "height", "ratio", "box"),
    [
        (1000, 10, USUAL, (493, 0, 506, 10)),
        (10, 1000, USUAL, (0, 493, 10, 506)),
        (1, 9, (3.0, 4.0), (0, 4, 1, 5)),  # never less than a pixel
        (9, 1, (0.2, 0.3), (4, 0, 5, 1)),
    ],
)
def test_the_central_crop_is_used_if_no_crop_fits(
    width: int, height: int, ratio: tuple[float, float], box: tuple[int, ...]
) -> None:
    choose = partial(random_resized_crop, scale=(1.0, 1.0), ratio=ratio, hflip_prob=0.0)
    assert {choose(width, height, draw).box for draw in many_draws(20)} == {box}


def test_place_and_flip_are_independent() -> None:
    """Looked at in crops of one size, so that the room for their place is the same."""
    choose = partial(random_resized_crop, scale=(0.25, 0.25), ratio=(1.0, 1.0), hflip_prob=0.5)
    views = [choose(1000, 1000, draw) for draw in many_draws(4000)]
    left, top = np.array([view.box[:2] for view in views]).T
    flip = np.array([view.flip for view in views])
    assert stats.pearsonr(left, top).pvalue > LEAST_P
    assert stats.ks_2samp(left[flip], left[~flip]).pvalue > LEAST_P


# ---------------------------------------------------------------- padded crop


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_all_shifts_are_equally_likely(padding: int) -> None:
    choose = PaddedCrop(padding, hflip_prob=0.5)
    views = [choose(40, 30, draw) for draw in many_draws(5000)]
    assert {view.box for view in views} == {(0, 0, 40, 30)}
    shifts, counts = np.unique([view.shift for view in views], axis=0, return_counts=True)
    span = range(-padding, padding + 1)
    assert shifts.tolist() == [[x, y] for x in span for y in span]
    if padding:
        assert stats.chisquare(counts).pvalue > LEAST_P


# ---------------------------------------------------------------- flips, keys


@pytest.mark.parametrize("prob", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "choose",
    [
        partial(random_resized_crop, scale=SCALE, ratio=USUAL),
        partial(random_resized_crop, scale=(1.0, 1.0), ratio=(9.0, 9.0)),  # only the fallback
        lambda *size_and_draw, hflip_prob: PaddedCrop(4, hflip_prob)(*size_and_draw),
    ],
)
def test_flips_have_the_configured_frequency(choose: Callable[..., CropSpec], prob: float) -> None:
    num = 2000
    flips = sum(choose(40, 30, draw, hflip_prob=prob).flip for draw in many_draws(num))
    assert abs(flips - num * prob) <= 4 * sqrt(num * prob * (1 - prob))


@pytest.mark.parametrize(
    "choose",
    [
        partial(random_resized_crop, scale=SCALE, ratio=USUAL, hflip_prob=0.5),
        PaddedCrop(4, hflip_prob=0.5),
    ],
)
def test_a_crop_depends_on_its_key_alone(choose: CropFn) -> None:
    def views(epoch: int, ids: NDArray[np.int64]) -> list[CropSpec]:
        drawn = uniform(derive_key(0, "augment", epoch, ids), NUM_RANDOMS)
        return [choose(500, 375, draw) for draw in drawn]

    ids = np.arange(500)
    first = views(0, ids)
    assert views(0, ids[::-1]) == first[::-1]
    assert views(0, ids[100:101]) == first[100:101]
    for other in views(1, ids), first[1:]:
        assert sum(a == b for a, b in zip(other, first, strict=False)) < 20


# ---------------------------------------------------------------- evaluation


# ---------------------------------------------------------------- scaled crop


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (256, 256), (90, 40)])
@pytest.mark.parametrize("center_square_first", [True, False])
def test_a_scaled_crop_is_a_square_of_what_was_resized(
    width: int, height: int, *, center_square_first: bool
) -> None:
    shorter, sides = min(width, height), set[float]()
    for draw in many_draws(500):
        view = resize_crop(
            width, height, draw, crop=224, resize_range=(256, 512),
            center_square_first=center_square_first, hflip_prob=0.5,
        )  # fmt: skip
        left, top, right, bottom = view.box
        assert right - left == pytest.approx(bottom - top)
        side = 224 * shorter / (right - left)  # of the resized image
        assert side == pytest.approx(round(side))
        sides.add(round(side))
        outside = ((width - shorter) / 2, (height - shorter) / 2) if center_square_first else (0, 0)
        assert outside[0] - 1e-9 <= left
        assert right <= width - outside[0] + 1e-9
        assert outside[1] - 1e-9 <= top
        assert bottom <= height - outside[1] + 1e-9
    assert min(sides) >= 256
    assert max(sides) <= 512
    assert len(sides) > 100


def test_both_ends_of_a_range_of_sides_are_drawn() -> None:
    crop = partial(
        resize_crop, crop=224, resize_range=(256, 258), center_square_first=True, hflip_prob=0.5
    )
    boxes = (crop(300, 300, draw).box for draw in many_draws(100))
    assert {round(224 * 300 / (right - left)) for left, _, right, _ in boxes} == {256, 257, 258}


def test_alexnets_crops_are_everywhere_in_the_central_square() -> None:
    crop = partial(
        resize_crop, crop=224, resize_range=(256, 256), center_square_first=True, hflip_prob=0.5
    )
    views = [crop(512, 256, draw) for draw in many_draws(2000)]
    lefts = np.array([view.box[0] for view in views]) - 128
    tops = np.array([view.box[1] for view in views])
    for places in (lefts, tops):
        assert stats.kstest(places / 32, "uniform").pvalue > LEAST_P
    flips = sum(view.flip for view in views)
    assert stats.binomtest(flips, 2000, 0.5).pvalue > LEAST_P
