"""The sizes of a run divide each other, or the error has the nearest that do."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import plan as plan_with

from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.sampling.sample_order import MicroBatchKey, Part
from orchestrator.config.parse import ConfigError, parse
from orchestrator.run.plan import Plan, make_largest_plan, make_plan

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
    """Make a plan, of 15 steps an epoch and 4 micro-batches a step by default."""
    sizes = {"global_batch_size": 64, "num_micro_batches": 4}
    values["recipe"] |= sizes | {"epochs": None} | recipe
    values["evaluate"]["every_epochs"] = every_epochs
    return make_plan(parse(values), world_size, split(num_train), split(100))


@pytest.mark.parametrize("num_train", [10, 63, 64])
def test_a_batch_larger_than_a_tiny_data_set_is_refused_with_sizes_that_work(
    values: dict[str, Any], num_train: int
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(values, steps=1, num_train=num_train, global_batch_size=128)
    proposals, num_lanes = refused.value.hint.splitlines()[1:], values["data"]["num_lanes"]
    assert proposals
    for proposal in proposals:
        changed = dict(re.findall(r"(\w+)=(\w+)", proposal))
        values["data"]["num_lanes"] = changed.pop("num_lanes", num_lanes)
        changed = {key: value if value == "auto" else int(value) for key, value in changed.items()}
        assert plan_of(values, steps=1, num_train=num_train, **changed).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("nodes", "micro_batches", "world_size"),
    [
        ("1-3", 4, 4),  # six ranks share no four micro-batches equally
        ("1-3", "auto", 4),  # nor any batch of 64
        ("2-4", 8, 8),
        ("3-4", 8, None),  # a job may get three nodes, which do not fit
        (2, 4, 4),
    ],
)
def test_a_range_of_nodes_is_planned_for_the_most_that_fit(
    values: dict[str, Any], nodes: int | str, micro_batches: int | str, world_size: int | None
) -> None:
    values["recipe"] |= {"num_micro_batches": micro_batches, "global_batch_size": 64}
    values["slurm"] |= {"nodes": nodes, "tasks_per_node": 2}
    values["launcher"]["name"] = "slurm"
    config = parse(values)
    if world_size is None:
        with pytest.raises(ConfigError):
            make_largest_plan(config, split(1000), split(100))
    else:
        assert make_largest_plan(config, split(1000), split(100)).world_size == world_size


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
        "global batch 64 = 4 micro-batches of 16, 2 on each of 2 ranks, "
        "dealt from 32 lanes of the data set",
    ]


@pytest.mark.parametrize(
    ("world_size", "micro_batches", "ranks"),
    [
        (16, 8, "8 micro-batches of 12, each shared by 2 of 16 ranks"),
        (4, 4, "4 micro-batches of 24, 1 on each of 4 ranks"),
        (1, 4, "4 micro-batches of 24, one after the other on 1 rank"),
        (1, 1, "1 micro-batch of 96, on 1 rank"),
    ],
)
def test_the_summary_says_how_ranks_compute_the_micro_batches(
    world_size: int, micro_batches: int, ranks: str
) -> None:
    plan = plan_with(global_batch_size=96, num_micro_batches=micro_batches, world_size=world_size)
    assert plan.summary_lines()[2].startswith(f"global batch 96 = {ranks}, dealt from 1 lane")


def test_a_batch_larger_than_the_data_set_is_refused(values: dict[str, Any]) -> None:
    assert plan_of(values, steps=1, num_train=64).steps_per_epoch == 1
    with pytest.raises(ConfigError, match="63 training images"):
        plan_of(values, steps=1, num_train=63)


def test_a_run_that_ends_before_powersgd_starts_is_refused(values: dict[str, Any]) -> None:
    values["strategy"] |= {"comm_hook": "powersgd", "start_powersgd_step": 10}
    values["recipe"] |= {"epochs": None, "steps": 10}
    with pytest.raises(ConfigError) as error:
        make_plan(parse(values), 2, split(1000), split(100))
    assert error.value.value == 10
    values["recipe"]["steps"] = 11
    assert make_plan(parse(values), 2, split(1000), split(100)).num_steps == 11


def test_splits_of_different_classes_are_refused(values: dict[str, Any]) -> None:
    train, val = split(1000), replace(split(100), classes=CLASSES[::-1])
    with pytest.raises(ConfigError) as refused:
        make_plan(parse(values), 1, train, val)
    assert refused.value.value == values["data"]["url"]


def plan_of_labels(values: dict[str, Any], kind: Any, num_val: int = 100, **changes: Any) -> Plan:
    values["recipe"] |= {"loss": "bce"} | changes
    train, val = (replace(split(num), labels=LabelRule(kind)) for num in (1000, num_val))
    counts = (900, 50) if kind == "multi" else None
    return make_plan(parse(values), 1, replace(train, samples_per_class=counts), val)


@pytest.mark.parametrize(
    ("kind", "keep_best", "changes", "value"),
    [
        ("multi", "val/map", {"loss": "cross_entropy"}, "multi"),
        ("none", "val/loss", {}, "none"),
        ("multi", "val/map", {"class_balanced": True}, "multi"),
        ("single", "val/top1", {"bce_pos_weight": "auto"}, "auto"),  # nobody has counted
        ("multi", "val/top5", {}, "val/top5"),
        ("single", "val/map", {}, "val/map"),
        ("multi", "val/map", {"num_val": 2 << 30}, 5 * 2 * (2 << 30)),  # scores of 20 GB
    ],
)
def test_a_loss_or_metric_that_does_not_fit_the_labels_is_refused(
    values: dict[str, Any], kind: str, keep_best: str, changes: dict[str, Any], value: object
) -> None:
    values["checkpoint"]["keep_best"] = keep_best
    with pytest.raises(ConfigError) as refused:
        plan_of_labels(values, kind, **changes)
    assert refused.value.value == value


@pytest.mark.parametrize("keep_best", [None, "val/top1", "val/map", "val/f1", "val/loss"])
def test_metrics_of_several_labels_choose_the_best_checkpoint(
    values: dict[str, Any], keep_best: str | None
) -> None:
    values["checkpoint"]["keep_best"] = keep_best
    plan = plan_of_labels(values, "multi", bce_pos_weight="auto")
    assert (plan.label_kind, plan.samples_per_class) == ("multi", (900, 50))


def test_counts_that_do_not_fit_the_samples_are_refused() -> None:
    for wrong in ((1,), (1, 1001), (-1, 0)):
        with pytest.raises(ValueError, match="samples_per_class"):
            replace(split(1000), samples_per_class=wrong)
