"""The sizes of a step divide each other, or the error has the nearest that do."""

import math
import re
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.parse import ConfigError
from orchestrator.config.recipe import CountOrAuto
from orchestrator.run.sizes import SizeRequest, StepSizes, choose_sizes

numbers = st.integers(1, 100)
counts = st.one_of(st.just("auto"), numbers)


def assert_fits(request: SizeRequest, sizes: StepSizes) -> None:
    """Check every promise about the sizes of a step."""
    micro_batches, lanes = sizes
    for requested, chosen in ((request.micro_batches, micro_batches), (request.lanes, lanes)):
        assert requested in ("auto", chosen)
    assert micro_batches % request.ranks == 0 or request.ranks % micro_batches == 0
    assert request.batch % request.ranks == 0
    assert lanes % micro_batches == request.batch % (lanes * request.repeats) == 0
    assert request.batch <= request.num_train
    if request.micro_batches == "auto":
        per_pass = request.batch // max(micro_batches, request.ranks)
        assert per_pass <= (request.max_images or per_pass)


@given(ranks=numbers, each=numbers, lanes_each=numbers, size=numbers, repeats=st.integers(1, 4))
def test_divisible_sizes_are_accepted(
    ranks: int, each: int, lanes_each: int, size: int, repeats: int
) -> None:
    micro_batches = ranks * each
    lanes = micro_batches * lanes_each
    batch = lanes * size * repeats
    request = SizeRequest(ranks, micro_batches, lanes, batch, num_train=batch, repeats=repeats)
    assert choose_sizes(request) == (micro_batches, lanes)
    for auto in (
        replace(request, micro_batches="auto"),
        replace(request, lanes="auto"),
        replace(request, micro_batches="auto", lanes="auto"),
    ):
        assert_fits(auto, choose_sizes(auto))


@given(
    micro_batches=numbers,
    shared_by=st.integers(2, 16),
    lanes_each=numbers,
    size=st.integers(1, 20),
    repeats=st.integers(1, 4),
)
def test_ranks_may_share_a_micro_batch_in_equal_parts(
    micro_batches: int, shared_by: int, lanes_each: int, size: int, repeats: int
) -> None:
    ranks, lanes = micro_batches * shared_by, micro_batches * lanes_each
    batch = math.lcm(ranks, lanes * repeats) * size
    request = SizeRequest(ranks, micro_batches, lanes, batch, num_train=batch, repeats=repeats)
    assert choose_sizes(request) == (micro_batches, lanes)
    assert choose_sizes(replace(request, lanes="auto")).micro_batches == micro_batches


@settings(max_examples=300)
@given(
    nodes=st.integers(1, 20),
    per_node=st.one_of(st.none(), st.integers(1, 8)),
    micro_batches=counts,
    lanes=counts,
    batch=st.one_of(st.sampled_from([64, 96, 256, 512, 1152]), st.integers(1, 3000)),
    num_train=st.one_of(st.integers(1, 60), st.integers(1, 5000)),
    repeats=st.integers(1, 4),
    max_images=st.one_of(st.none(), st.integers(4, 200)),
)
def test_sizes_that_do_not_work_are_refused_with_sizes_that_do(
    nodes: int,
    per_node: int | None,
    micro_batches: CountOrAuto,
    lanes: CountOrAuto,
    batch: int,
    num_train: int,
    repeats: int,
    max_images: int | None,
) -> None:
    request = SizeRequest(
        *(nodes * (per_node or 1), micro_batches, lanes, batch, num_train, repeats, per_node),
        max_images,
    )
    try:
        sizes = choose_sizes(request)
    except ConfigError as error:
        proposals = error.hint.splitlines()[1:]
        assert proposals or num_train < repeats * (per_node or 1)
        for proposal in proposals:
            changed = request_with(request, proposal)
            assert changed != request
            assert_fits(changed, choose_sizes(changed))
    else:
        assert_fits(request, sizes)


@settings(max_examples=50)
@given(
    ranks=st.integers(1, 8),
    micro_batches=st.one_of(st.just("auto"), st.integers(1, 8)),
    batch=st.sampled_from([4, 24, 64, 96]),
    repeats=st.integers(1, 2),
    weights=st.lists(st.sampled_from([1, 2, 5, 30]), min_size=1, max_size=3),
)
def test_every_data_set_of_a_mixture_is_in_every_micro_batch(
    ranks: int, micro_batches: CountOrAuto, batch: int, repeats: int, weights: list[float]
) -> None:
    alone = SizeRequest(ranks, micro_batches, "auto", batch, num_train=batch, repeats=repeats)
    request = replace(alone, weights=tuple(weights))
    try:
        sizes = choose_sizes(request)
    except ConfigError:
        with suppress(ConfigError):  # refused without a mixture, too, or since one is left out
            assert not all(request.quotas(choose_sizes(alone).micro_batches))
    else:
        assert_fits(request, sizes)
        assert sum(request.quotas(sizes.micro_batches)) == batch
        assert all(request.quotas(sizes.micro_batches))


def test_a_weight_that_is_too_small_for_a_micro_batch_is_refused_with_the_reason() -> None:
    request = SizeRequest(8, 8, "auto", 64, num_train=1000, weights=(30, 1))
    with pytest.raises(ConfigError, match=r"data\.mix.*smallest weight, 1 of 31"):
        choose_sizes(request)
    auto = choose_sizes(replace(request, micro_batches="auto"))
    assert request.quotas(auto.micro_batches) == [60, 4]  # by two ranks each


def request_with(request: SizeRequest, proposal: str) -> SizeRequest:
    """Return a request with the overrides of a proposal."""
    values = dict(re.findall(r"([\w.]+)=(\w+)", proposal))
    per_node = request.ranks_per_node
    ranks_key, each = (
        ("launcher.nproc_per_node", 1) if per_node is None else ("slurm.nodes", per_node)
    )
    fields: dict[str, object] = {}
    for key, value in values.items():
        number = value if value == "auto" else int(value)
        if key == ranks_key:
            fields["ranks"] = int(value) * each
        else:
            fields[FIELDS[key]] = number
    return replace(request, **fields)  # type: ignore[arg-type]


FIELDS = {
    "recipe.global_batch_size": "batch",
    "recipe.num_micro_batches": "micro_batches",
    "data.num_lanes": "lanes",
}


@pytest.mark.parametrize(
    ("ranks", "batch", "changes", "expected"),
    [
        (1, 128, {}, (1, 32)),
        (4, 128, {}, (4, 32)),
        (48, 384, {}, (48, 48)),  # 32 is no multiple of 48
        (4, 1152, {"repeats": 3}, (4, 32)),
        (2, 256, {"max_images": 50}, (8, 32)),  # 4 passes of 32 images; 3 of 43 would be unequal
        (2, 256, {"max_images": 128}, (2, 32)),
        (4, 256, {"micro_batches": 8}, (8, 32)),
        (4, 200, {"micro_batches": 8}, (8, 40)),
        (2, 256, {"lanes": 8, "max_images": 32}, (8, 8)),
        (16, 256, {"micro_batches": 8}, (8, 32)),
        (64, 128, {}, (64, 64)),
        (64, 64, {}, (32, 32)),  # two ranks share two images: batch norm needs more than one
        (64, 256, {"lanes": 32}, (32, 32)),
        (96, 96, {"repeats": 3}, (32, 32)),
        (1, 1, {}, (1, 1)),
        (1, 97, {}, (1, 1)),  # or 97 lanes of one image
        (4, 8, {"max_images": 1}, (8, 8)),  # micro-batches of one image, if nothing else fits
    ],
)
def test_auto_is_a_micro_batch_a_rank_and_about_32_lanes(
    ranks: int, batch: int, changes: dict[str, int], expected: tuple[int, int]
) -> None:
    request = SizeRequest(ranks, "auto", "auto", batch, num_train=batch)
    assert choose_sizes(replace(request, **changes)) == expected  # type: ignore[arg-type]


def proposals_for(request: SizeRequest) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        choose_sizes(request)
    assert refused.value.value == request
    return [line.split("   ")[0].strip() for line in refused.value.hint.splitlines()[1:]]


def test_the_nearest_sizes_change_as_little_as_possible() -> None:
    assert proposals_for(SizeRequest(2, 4, 32, 250, num_train=1000)) == [
        "recipe.global_batch_size=224",
        "recipe.global_batch_size=256",
        "recipe.global_batch_size=248 data.num_lanes=auto",
        "recipe.global_batch_size=252 data.num_lanes=auto",
        "recipe.num_micro_batches=auto data.num_lanes=auto",
    ]


def test_auto_sizes_that_no_rank_count_suits_are_refused_with_other_batches_and_ranks() -> None:
    assert proposals_for(SizeRequest(24, "auto", "auto", 256, num_train=1000)) == [
        "recipe.global_batch_size=240",
        "recipe.global_batch_size=264",
        "launcher.nproc_per_node=16",
        "launcher.nproc_per_node=32",
    ]
    assert proposals_for(
        SizeRequest(24, "auto", "auto", 256, num_train=1000, ranks_per_node=8)
    ) == [
        "recipe.global_batch_size=240",
        "recipe.global_batch_size=264",
        "slurm.nodes=2",
        "slurm.nodes=4",
    ]


def test_24_ranks_with_4_micro_batches_need_a_batch_that_they_divide() -> None:
    assert proposals_for(SizeRequest(24, 4, 32, 256, num_train=1000)) == [
        "recipe.global_batch_size=192",
        "recipe.global_batch_size=288",
        "recipe.global_batch_size=240 data.num_lanes=auto",
        "recipe.global_batch_size=264 data.num_lanes=auto",
        "launcher.nproc_per_node=16",
        "launcher.nproc_per_node=32",
    ]


def test_too_few_images_for_the_ranks_are_refused_with_fewer_ranks() -> None:
    assert proposals_for(SizeRequest(16, "auto", "auto", 128, num_train=10)) == [
        "recipe.global_batch_size=10 launcher.nproc_per_node=10",
    ]
