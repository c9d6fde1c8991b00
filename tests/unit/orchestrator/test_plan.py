"""The sizes of a run divide each other, or the error has the nearest that do."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan as plan_with

from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.sampling.sample_order import MicroBatchKey, Part
from orchestrator.config.parse import ConfigError, parse
from orchestrator.run.plan import Plan, Sizes, check_sizes, make_plan

CLASSES = ("cat", "dog")


def split(num_samples: int, classes: tuple[str, ...] = CLASSES) -> Manifest:
    shard = ShardInfo("shard-000000.tar", num_samples, 10240, "0" * 64)
    return Manifest(classes, (shard,), {})


def plan_of(
    values: dict[str, Any],
    *,
    num_train: int = 1000,
    world_size: int = 2,
    every_epochs: float = 1,
    **recipe: Any,
) -> Plan:
    """Make a plan, of 15 steps an epoch by default."""
    values["recipe"] |= {"global_batch_size": 64, "epochs": None} | recipe
    values["evaluate"]["every_epochs"] = every_epochs
    return make_plan(parse(values), world_size, split(num_train), split(100))


numbers = st.integers(1, 100)


@given(ranks=numbers, each=numbers, lanes_each=numbers, size=numbers, repeats=st.integers(1, 4))
def test_divisible_sizes_are_accepted(
    ranks: int, each: int, lanes_each: int, size: int, repeats: int
) -> None:
    micro_batches = ranks * each
    lanes = micro_batches * lanes_each
    batch = lanes * size * repeats
    check_sizes(Sizes(ranks, micro_batches, lanes, batch, num_train=batch, repeats=repeats))


@settings(max_examples=300)
@given(
    nodes=st.integers(1, 20),
    per_node=st.one_of(st.none(), st.integers(1, 8)),
    micro_batches=numbers,
    lanes=numbers,
    batch=st.integers(1, 3000),
    num_train=st.one_of(st.integers(1, 60), st.integers(1, 5000)),
    repeats=st.integers(1, 4),
)
def test_sizes_that_do_not_work_are_refused_with_sizes_that_do(
    nodes: int,
    per_node: int | None,
    micro_batches: int,
    lanes: int,
    batch: int,
    num_train: int,
    repeats: int,
) -> None:
    requested = {
        "launcher.nproc_per_node" if per_node is None else "slurm.nodes": nodes,
        "recipe.num_micro_batches": micro_batches,
        "data.num_lanes": lanes,
        "recipe.global_batch_size": batch,
    }
    limits = {"num_train": num_train, "repeats": repeats}

    def check(first: int, *others: int) -> None:
        ranks = first * (per_node or 1)
        check_sizes(Sizes(ranks, *others, **limits, ranks_per_node=per_node))  # type: ignore[arg-type]

    try:
        check(*requested.values())
    except ConfigError as error:
        proposals = error.hint.splitlines()[1:]
        assert proposals or num_train < repeats * (per_node or 1)
        for proposal in proposals:
            changed = {name: int(n) for name, n in re.findall(r"([\w.]+)=(\d+)", proposal)}
            assert changed.keys() <= requested.keys()
            check(*(requested | changed).values())
    else:
        ranks = nodes * (per_node or 1)
        assert micro_batches % ranks == lanes % micro_batches == batch % (lanes * repeats) == 0
        assert batch <= num_train


@pytest.mark.parametrize("num_train", [10, 63, 64])
def test_a_batch_larger_than_a_tiny_data_set_is_refused_with_sizes_that_work(
    values: dict[str, Any], num_train: int
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(values, steps=1, num_train=num_train, global_batch_size=128)
    proposals = refused.value.hint.splitlines()[1:]
    assert proposals
    for proposal in proposals:
        changed = {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", proposal)}
        values["data"]["num_lanes"] = changed.pop("num_lanes", 32)
        assert plan_of(values, steps=1, num_train=num_train, **changed).steps_per_epoch == 1


def test_24_ranks_with_4_micro_batches_are_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(ConfigError) as refused:
        check_sizes(Sizes(24, 4, 32, 256, num_train=1000))
    _, *proposals = [line.split("   ")[0].strip() for line in refused.value.hint.splitlines()]
    assert "recipe.num_micro_batches=4" in refused.value.problem
    assert proposals == [
        "recipe.global_batch_size=240 data.num_lanes=24 recipe.num_micro_batches=24",
        "recipe.global_batch_size=264 data.num_lanes=24 recipe.num_micro_batches=24",
        "launcher.nproc_per_node=4",
    ]


def test_a_batch_that_the_lanes_do_not_divide_is_refused_with_the_next_ones() -> None:
    with pytest.raises(ConfigError) as refused:
        check_sizes(Sizes(2, 4, 32, 250, num_train=1000))
    assert "recipe.global_batch_size=250" in refused.value.problem
    assert "recipe.global_batch_size=224   (" in refused.value.hint
    assert "recipe.global_batch_size=256   (" in refused.value.hint


@pytest.mark.parametrize(
    ("duration", "num_steps"),
    [
        ({"epochs": 2}, 30),
        ({"epochs": 0.5}, 8),
        ({"epochs": 0.001}, 1),
        ({"images": 6400}, 100),
        ({"images": 1}, 1),
        ({"steps": 7}, 7),
    ],
)
def test_a_duration_is_a_number_of_steps(
    values: dict[str, Any], duration: dict[str, float], num_steps: int
) -> None:
    plan = plan_of(values, **duration)
    assert (plan.steps_per_epoch, plan.num_steps) == (15, num_steps)


@pytest.mark.parametrize(
    ("every_epochs", "steps"),
    [(1, [15, 30, 32]), (0.5, [8, 16, 24, 32]), (100, [32]), (1e-9, list(range(1, 33)))],
)
def test_it_is_evaluated_regularly_and_after_the_last_step(
    values: dict[str, Any], every_epochs: float, steps: list[int]
) -> None:
    plan = plan_of(values, steps=32, every_epochs=every_epochs)
    assert [step for step in range(1, 33) if plan.should_evaluate(step)] == steps


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_share_the_micro_batches_of_every_step(
    values: dict[str, Any], world_size: int
) -> None:
    plan = plan_of(values, steps=3, world_size=world_size)
    assert plan.micro_batch_size * plan.accumulation_steps * plan.world_size == 64
    computed = [key for rank in range(world_size) for key in plan.micro_batches(rank, 1)]
    assert {key.part for key in computed} == {Part()}
    computed.sort(key=lambda key: key[:2])
    assert computed == [MicroBatchKey(step, micro) for step in (1, 2) for micro in range(4)]


sharing = st.one_of(st.just(1), st.integers(1, 8))


@given(small=st.integers(1, 12), factor=sharing, size=st.integers(1, 9), more_ranks=st.booleans())
def test_each_row_of_each_micro_batch_is_computed_by_one_rank(
    small: int, factor: int, size: int, more_ranks: bool
) -> None:
    micro_batches, world_size = (small, small * factor) if more_ranks else (small * factor, small)
    per_micro_batch = size * factor
    plan = plan_with(
        world_size=world_size,
        num_micro_batches=micro_batches,
        global_batch_size=micro_batches * per_micro_batch,
    )
    assert plan.ranks_per_micro_batch * micro_batches == plan.accumulation_steps * world_size
    seen = np.zeros((micro_batches, per_micro_batch), int)
    for rank in range(world_size):
        keys = [*plan.micro_batches(rank, plan.num_steps - 1)]
        assert len(keys) == plan.accumulation_steps
        for _, micro, part in keys:
            assert len(part.rows(per_micro_batch)) == plan.images_per_pass
            seen[micro, part.rows(per_micro_batch)] += 1
    assert (seen == 1).all()


def test_the_summary_has_the_numbers_multiplied_out(values: dict[str, Any]) -> None:
    assert plan_of(values, epochs=2).summary_lines() == [
        "30 steps of 64 images = 2 epochs = 1,920 images, evaluated on 100 every 15 steps",
        "1,000 training images = 15 steps an epoch (40 images left for another epoch)",
        "global batch 64 = 2 ranks x micro-batch 16 x accumulation 2, "
        "dealt from 32 lanes of the data set",
    ]


def test_a_batch_larger_than_the_data_set_is_refused(values: dict[str, Any]) -> None:
    assert plan_of(values, steps=1, num_train=64).steps_per_epoch == 1
    with pytest.raises(ConfigError, match="63 training images"):
        plan_of(values, steps=1, num_train=63)


def test_splits_of_different_classes_are_refused(values: dict[str, Any]) -> None:
    train, val = split(1000), replace(split(100), classes=CLASSES[::-1])
    with pytest.raises(ConfigError) as refused:
        make_plan(parse(values), 1, train, val)
    assert refused.value.value == values["data"]["url"]
