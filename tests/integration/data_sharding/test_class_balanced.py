"""All classes equally often, all samples of a class equally often, from any step on."""

import time
import tracemalloc
from functools import partial

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest, ShardInfo
from data_sharding.io.mapped_arrays import arrays_to_safetensors, mmap_safetensors
from data_sharding.sampling.class_balanced import (
    FILE_NAME,
    BalancedOrder,
    ClassIndex,
    read_class_index,
    write_class_index,
)


def order_of(sizes, seed=0, batch=8, micros=2):
    """Return the order of classes of these sizes whose samples lie mixed, and the labels."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    index = ClassIndex(np.argsort(labels, kind="stable"), np.cumsum(sizes))
    return BalancedOrder(index, seed, batch, micros), labels


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=9),
    st.integers(0, 3),
    st.integers(1, 8),
    st.integers(1, 60),
)
def test_every_prefix_is_balanced(sizes, seed, batch, num_steps):
    order, labels = order_of(sizes, seed, batch, micros=1)
    drawn = [order.global_batch(step) for step in range(num_steps)]
    ids = np.concatenate([one.ids for one in drawn])
    per_class = np.bincount(labels[ids], minlength=len(sizes))
    assert per_class.max() - per_class.min() <= 1
    per_sample = np.bincount(ids, minlength=len(labels))
    for label in range(len(sizes)):
        counts = per_sample[labels == label]
        assert counts.max() - counts.min() <= 1
    passes = np.concatenate([one.passes for one in drawn])
    assert len({*zip(ids.tolist(), passes.tolist(), strict=True)}) == len(ids)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(0, 10**9))
def test_micro_batches_are_parts_of_the_global_batch(sizes, step):
    whole = order_of(sizes)[0].global_batch(step)
    for micros in (1, 2, 4, 8):
        order, _ = order_of(sizes, micros=micros)
        parts = [order.micro_batch(step, micro) for micro in range(micros)]
        assert np.array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
        assert np.array_equal(np.concatenate([part.passes for part in parts]), whole.passes)


def test_cycles_and_passes_have_orders_of_their_own():
    order, labels = order_of([6] * 8)
    batches = np.stack([order.global_batch(step).ids for step in range(24)])
    cycles = labels[batches]
    assert len({tuple(cycle) for cycle in cycles.tolist()}) == 24
    of_class_0 = batches[cycles == 0].reshape(-1, 6)
    assert len({tuple(one) for one in of_class_0.tolist()}) == 4
    assert all(sorted(one) == sorted(of_class_0[0]) for one in of_class_0.tolist())


def manifest(num=10, rule=LabelRule(), sha256="0" * 64):  # noqa: B008
    return Manifest(("a", "b"), (ShardInfo("a.tar", num, 10240, sha256),), {}, rule)


LABELS = [0, 1, 1, 0, 1, 1, 1, 0, 1, 1]


@pytest.fixture(params=["local", "remote"])
def url(request, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    if request.param == "local":
        yield str(tmp_path / "a set")
        return
    yield f"memory://{tmp_path}/a set"
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_the_index_is_read_as_it_was_written(url):
    write_class_index(url, "train", manifest(), LABELS)
    for _ in range(2):
        index = read_class_index(url, "train", manifest())
        assert index.samples.tolist() == [0, 3, 7, 1, 2, 4, 5, 6, 8, 9]
        assert index.ends.tolist() == [3, 10]
        assert isinstance(index.samples, np.memmap)
        drawn = BalancedOrder(index, 0, 10, 1).global_batch(0)
        assert drawn.ids.dtype == drawn.passes.dtype == np.int64
        assert np.take(LABELS, drawn.ids).sum() == 5


def test_a_remote_index_is_copied_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    write_class_index("memory://a set", "train", manifest(), LABELS)
    read_class_index("memory://a set", "train", manifest())
    (copy,) = tmp_path.glob(f"tahoe-*/tables/*-{FILE_NAME}")
    copy.write_bytes(copy.read_bytes()[:-1])  # cut short by a full disk, say
    assert len(read_class_index("memory://a set", "train", manifest()).samples) == 10
    fsspec.filesystem("memory").rm("/", recursive=True)
    assert len(read_class_index("memory://a set", "train", manifest()).samples) == 10


@pytest.mark.parametrize("kind", ["none", "multi"])
def test_samples_without_one_class_cannot_be_balanced(url, kind):
    for use in (partial(write_class_index, labels=[]), read_class_index):
        with pytest.raises(DataError) as raised:
            use(url, "train", manifest(rule=LabelRule(kind, "json")))
        assert raised.value.value == kind


def test_a_class_without_samples_cannot_be_drawn(url):
    with pytest.raises(DataError) as raised:
        write_class_index(url, "train", manifest(), [0] * 10)
    assert raised.value.value == "b"


def test_a_missing_index_is_an_error_with_a_hint(url):
    with pytest.raises(DataError, match="missing") as raised:
        read_class_index(url, "train", manifest())
    assert raised.value.value == f"{url}/train/{FILE_NAME}"
    assert "`class_index`" in raised.value.hint


@pytest.mark.parametrize("other", [manifest(11), manifest(sha256="1" * 64)])
def test_the_index_of_another_data_set_is_refused(url, other):
    write_class_index(url, "train", manifest(), LABELS)
    with pytest.raises(DataError, match="another data set"):
        read_class_index(url, "train", other)


def test_a_damaged_index_is_refused(tmp_path):
    url, path = str(tmp_path), tmp_path / "train" / FILE_NAME
    write_class_index(url, "train", manifest(), LABELS)
    sound = path.read_bytes()
    columns = {name: column.copy() for name, column in mmap_safetensors(path).items()}
    for changes in (
        {"ends": np.array([0, 10])},
        {"ends": np.array([3, 9])},
        {"ends": np.array([11, 10])},
        {"ends": np.array([10])},
        {"ends": np.array([3, 10], dtype=np.uint32)},
        {"samples": np.arange(9)},
        {"samples": np.arange(10, dtype=np.uint8)},
        {"samples": np.arange(10)[:, None]},
    ):
        path.write_bytes(arrays_to_safetensors(columns | changes))
        with pytest.raises(DataError, match="10 samples among 2 classes"):
            read_class_index(url, "train", manifest())
    for damaged in (b"", b"nothing", sound[:-1], sound.replace(b'"samples"', b'"simples"')):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be used"):
            read_class_index(url, "train", manifest())


@pytest.mark.parametrize("sample", [-1, 10, 2**40])
def test_a_sample_out_of_range_is_an_error_when_it_is_drawn(sample):
    index = ClassIndex(np.array([*range(9), sample]), np.array([3, 10]))
    order = BalancedOrder(index, 0, 2, 1)
    with pytest.raises(DataError, match=f"the sample {sample}, "):
        [order.global_batch(step) for step in range(10)]


def test_the_end_of_a_long_run_costs_what_its_beginning_costs():
    """And nothing grows with the data set: ten thousand million samples."""
    sizes = np.full(20_000, 500_000)
    nowhere = np.broadcast_to(np.array(7), sizes.sum())
    order = BalancedOrder(ClassIndex(nowhere, np.cumsum(sizes)), 0, 4096 * 4, 4096)
    order.micro_batch(0, 0)
    tracemalloc.start()
    start_s = time.process_time()
    for step in np.geomspace(1, 10**12, 20).astype(int).tolist():
        order.micro_batch(step, 4095)
    assert time.process_time() - start_s < 0.5
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_known_draws():
    """A run that is resumed years later goes on in its order."""
    order = BalancedOrder(ClassIndex(np.arange(16), np.array([5, 7, 16])), 7, 8, 2)
    drawn = [order.global_batch(step) for step in (0, 1, 10**9)]
    assert [one.ids.tolist() for one in drawn] == [
        [11, 5, 3, 6, 10, 2, 5, 1],
        [14, 13, 4, 6, 7, 5, 0, 1],
        [6, 5, 13, 2, 4, 5, 7, 15],
    ]
    assert [one.passes.tolist() for one in drawn[:2]] == [
        [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 2, 0, 1],
    ]
    assert drawn[2].passes.max() == 1_333_333_334  # of the class with two samples


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_micro_batches=3 does not divide global_batch_size=8"):
        order_of([5, 2], micros=3)
