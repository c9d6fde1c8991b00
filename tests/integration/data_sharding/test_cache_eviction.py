"""The evicted shards, and the limit of the cache."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_sharding.io.file_lock import exclusive_lock, shared_lock
from data_sharding.storage.cache_eviction import (
    SpaceBudget,
    next_use_distances,
)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "plans").mkdir()
    return tmp_path


def put(directory, name, num_bytes, age=0):
    path = directory / f"{name}.tar"
    path.write_bytes(bytes(num_bytes))
    os.utime(path, ns=(10**18 - age, 10**18 - age))
    return path


def reserve(budget, directory, num_bytes, distance):
    """Reserve room for a shard as one that is being fetched; leave it there if there was budget."""
    with exclusive_lock(directory / "new.part") as part:
        took = budget.reserve(part, num_bytes, distance)
        if took:
            budget.publish(directory / "new.part", directory / "new.tar")
        else:
            (directory / "new.part").unlink()
    return took


def names(directory):
    return {path.stem for path in directory.glob("*.tar")}


def test_shards_without_a_plan_are_evicted_first_oldest_first(directory):
    budget = SpaceBudget(directory, 100)
    for name, age in ("a", 1), ("b", 3), ("c", 2), ("wanted", 9):
        put(directory, name, 25, age)
    with budget.access_plan() as plan:
        plan.write(0, {"wanted": 500})
        for gone in "b", "c", "a":
            assert reserve(budget, directory, 25, 500)
            (directory / "new.tar").rename(put(directory, f"kept-{gone}", 0))
            os.utime(directory / f"kept-{gone}.tar", ns=(10**18, 10**18))
            assert gone not in names(directory)
    assert names(directory) == {"wanted", "kept-a", "kept-b", "kept-c"}


def test_then_the_shard_whose_next_use_is_furthest_away_is_evicted(directory):
    budget = SpaceBudget(directory, 100)
    for name, age in ("soon", 100), ("late", 0), ("later", 50), ("late-for-one", 0):
        put(directory, name, 25, age)
    with (
        budget.access_plan() as ours,
        budget.access_plan() as theirs,
    ):
        ours.write(10, {"soon": 11, "late": 30, "later": 31, "late-for-one": 900})
        theirs.write(70, {"late-for-one": 72, "soon": 300})
        assert reserve(budget, directory, 25, None)
        assert names(directory) == {"soon", "late", "late-for-one", "new"}
        (directory / "new.tar").unlink()
        put(directory, "later", 25)
        assert reserve(budget, directory, 50, None)
        assert names(directory) == {"soon", "late-for-one", "new"}


def test_nothing_needed_sooner_is_evicted_for_a_prefetched_shard(directory):
    budget = SpaceBudget(directory, 100)
    for name in "abcd":
        put(directory, name, 25)
    with budget.access_plan() as plan:
        plan.write(5, {"a": 6, "b": 7, "c": 8, "d": 9})
        assert not reserve(budget, directory, 50, 3)  # as soon as c, and d alone is not enough
        assert names(directory) == set("abcd")
        assert reserve(budget, directory, 25, 3)
        assert names(directory) == {"a", "b", "c", "new"}


def test_the_plan_of_an_ended_process_is_ignored(directory):
    budget = SpaceBudget(directory, 100)
    with budget.access_plan() as plan:
        plan.write(0, {"a": 3})
        (path,) = budget.plans.iterdir()
        left = path.read_bytes()
        assert next_use_distances(budget.plans) == {"a": 3}
    path.write_bytes(left)
    assert next_use_distances(budget.plans) == {}
    assert not list(budget.plans.iterdir())


def test_a_shard_that_is_being_fetched_counts_in_full_and_a_dead_one_is_removed(directory):
    budget = SpaceBudget(directory, 100)
    (directory / "dead.part").write_bytes(bytes(70))
    with exclusive_lock(directory / "live.part") as live:
        live.truncate(60)
        put(directory, "a", 30)
        assert reserve(budget, directory, 40, None)
    assert names(directory) == {"new"}
    assert {path.name for path in directory.glob("*.part")} == {"live.part"}
    budget.remove_stale()
    assert not list(directory.glob("*.part"))


def test_a_shard_that_is_being_opened_is_not_evicted(directory, caplog):
    budget = SpaceBudget(directory, 100)
    path = put(directory, "a", 60)
    with shared_lock(path) as file:
        assert file
        assert not reserve(budget, directory, 60, 1)
        assert reserve(budget, directory, 60, None)  # correct batches come before the bound
        assert names(directory) == {"a", "new"}
        assert "is 0.0 MB above its limit" in caplog.text
        caplog.clear()
        put(directory, "new", 0)
        assert reserve(budget, directory, 60, None)
        assert not caplog.text  # once is enough
    assert reserve(budget, directory, 60, None)
    assert names(directory) == {"new"}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.none() | st.integers(0, 9)), max_size=8),
    st.integers(1, 60),
    st.none() | st.integers(0, 9),
)
def test_the_limit_holds_and_as_little_as_possible_is_evicted(cached, num_bytes, distance):
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        (directory / "plans").mkdir()
        budget = SpaceBudget(directory, 100)
        next_uses = {}
        for i, (size, next_use) in enumerate(cached):
            put(directory, str(i), size, age=i)
            next_uses |= {} if next_use is None else {str(i): next_use}
        before = names(directory)
        sizes = {str(i): size for i, (size, _) in enumerate(cached)} | {"new": num_bytes}
        with budget.access_plan() as plan:
            plan.write(0, next_uses)
            took = reserve(budget, directory, num_bytes, distance)
        gone = before - names(directory)
        rank = {name: next_uses.get(name, 10**9 + int(name)) for name in before}
        assert took or not gone
        assert not took or sum(sizes[name] for name in names(directory)) <= 100
        if gone:
            last = min(gone, key=lambda name: (rank[name], -int(name)))
            assert all(rank[name] <= rank[last] for name in before - gone)
            assert distance is None or rank[last] > distance
            assert sum(sizes[name] for name in names(directory) | {last}) > 100
        if not took:
            may_go = sum(sizes[name] for name in before if rank[name] > distance)
            assert sum(sizes[name] for name in before) - may_go + num_bytes > 100
