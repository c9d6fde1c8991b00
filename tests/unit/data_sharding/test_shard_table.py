"""A table equals its shards, in memory or mapped; impossible tables are refused."""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from data_sharding.format.shard_table import ShardInfo, ShardTable
from data_sharding.io.mapped_arrays import arrays_to_safetensors, mmap_safetensors

Columns = dict[str, NDArray[Any]]

names = st.from_regex(r"\A[A-Za-z0-9._-]{1,30}\.tar\Z")
counts = st.integers(1, 2**40)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
shards = st.builds(ShardInfo, names, counts, counts, digests)
kinds = st.sampled_from(["whole", "headers", "sampled"])
whole = st.lists(shards, min_size=1, max_size=8, unique_by=lambda shard: shard.name)
lists = st.builds(lambda given, kind: [replace(s, digest=kind) for s in given], whole, kinds)


def infos(num: int = 5) -> list[ShardInfo]:
    return [ShardInfo(f"s-{i}.tar", 10 + i, 10240 + i, f"{i:064x}") for i in range(num)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "shards.safetensors"
    path.write_bytes(ShardTable.from_infos(infos()).to_bytes())
    return path


# ---------------------------------------------------------------- a table is its shards


@settings(max_examples=100)
@given(given=lists)
def test_a_table_is_a_sequence_of_its_shards(
    given: list[ShardInfo], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / "a.safetensors"
    table = ShardTable.from_infos(given)
    path.write_bytes(table.to_bytes())
    for found in table, ShardTable.from_file(path), pickle.loads(pickle.dumps(table)):
        found.check()
        assert list(found) == given
        assert [found[i] for i in range(-len(given), 0)] == given
        assert (found.num_samples == [shard.num_samples for shard in given]).all()
        assert (found.num_bytes == [shard.num_bytes for shard in given]).all()
        assert found == table
        assert hash(found) == hash(table)
        with pytest.raises(IndexError):
            found[len(given)]


@settings(max_examples=100)
@given(lists, st.slices(8))
def test_slices_are_tables(given: list[ShardInfo], part: slice) -> None:
    assert ShardTable.from_infos(given)[part] == ShardTable.from_infos(given[part])
    assert list(ShardTable.from_infos(given)[part]) == given[part]


@settings(max_examples=100)
@given(lists, st.data())
def test_the_digest_changes_with_any_field(given: list[ShardInfo], data: st.DataObject) -> None:
    table, at = ShardTable.from_infos(given), data.draw(st.integers(0, len(given) - 1))
    field = data.draw(st.sampled_from(["name", "num_samples", "num_bytes", "sha256"]))
    values = asdict(given[at])
    values[field] = data.draw({"name": names, "sha256": digests}.get(field, counts))
    other = [*given[:at], ShardInfo(**values), *given[at + 1 :]]
    assert (ShardTable.from_infos(other).sha256 == table.sha256) == (other == given)
    assert (ShardTable.from_infos(given[::-1]) == table) == (given[::-1] == given)
    kind = {"whole": "headers", "headers": "sampled", "sampled": "whole"}[given[0].digest]
    assert ShardTable.from_infos(replace(shard, digest=kind) for shard in given) != table


def test_the_file_is_plain_safetensors(path: Path) -> None:
    """Any reader of safetensors can read it, and what any writer writes is read."""
    columns = load_file(path)
    assert [bytes(row).rstrip(b"\0").decode() for row in columns["names"]] == [
        shard.name for shard in infos()
    ]
    save_file(dict(reversed(columns.items())), path, metadata={"made": "elsewhere"})
    assert list(ShardTable.from_file(path)) == infos()


# ---------------------------------------------------------------- other processes


def test_a_mapped_table_is_pickled_as_its_path(path: Path) -> None:
    table = ShardTable.from_file(path)
    assert len(pickle.dumps(table)) < 1000
    assert pickle.loads(pickle.dumps(table)) == table


def test_a_process_that_starts_later_reads_the_same_table(path: Path) -> None:
    table = ShardTable.from_file(path)
    sent = pickle.dumps(table)
    other = path.with_name("new")
    other.write_bytes(ShardTable.from_infos(infos(6)).to_bytes())
    other.replace(path)
    assert list(table) == infos()
    with pytest.raises(ValueError, match="was replaced while a process was using it"):
        pickle.loads(sent)


# ---------------------------------------------------------------- what cannot be true


def test_digests_of_two_kinds_are_refused() -> None:
    first, *others = infos()
    with pytest.raises(ValueError, match="sampled"):
        ShardTable.from_infos([replace(first, digest="sampled"), *others])


def changed(change: Callable[[Columns], object], num: int = 5) -> ShardTable:
    """Return a table that something was done to."""
    table = ShardTable.from_infos(infos(num))
    columns = {name: column.copy() for name, column in table._columns.items()}
    change(columns)
    return ShardTable(**columns)


def put(name: str, index: Any, value: Any) -> Callable[[Columns], None]:
    def change(columns: Columns) -> None:
        columns[name][index] = value

    return change


def rename(row: int, name: bytes) -> Callable[[Columns], None]:
    return put("names", row, np.frombuffer(name.ljust(7, b"\0"), dtype=np.uint8))


def widen(columns: Columns) -> None:
    columns["names"] = np.pad(columns["names"], ((0, 0), (0, 1)))


def narrow(columns: Columns) -> None:
    columns["names"] = columns["names"][:, :0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("num_samples", 3, 0), r"shards\.3\.num_samples: 0 is not from 1 to 2\*\*62 - 1"),
        (put("num_samples", 4, -7), r"shards\.4\.num_samples: -7 is not"),
        (put("num_samples", 0, 2**62), r"shards\.0\.num_samples: 4611686018427387904 is not"),
        (put("num_bytes", 1, 0), r"shards\.1\.num_bytes: 0 is not"),
        (put("num_samples", slice(2), 2**61), r"num_samples: all shards together have 2\*\*62"),
        (put("num_bytes", slice(None), 2**62 - 1), r"num_bytes: all shards together have 2\*\*62"),
        (rename(2, b"../.tar"), r"shards\.2\.name: '\.\./\.tar' is no name of a \.tar file"),
        (rename(2, b"./a.tar"), r"shards\.2\.name"),
        (rename(2, b"a//.tar"), r"shards\.2\.name"),
        (rename(2, b"\xff\xff.tar"), r"shards\.2\.name"),
        (rename(2, b"abc.zip"), r"shards\.2\.name"),
        (rename(2, b".tar"), r"shards\.2\.name: '\.tar'"),
        (rename(2, b"tar"), r"shards\.2\.name"),
        (rename(2, b""), r"shards\.2\.name: ''"),
        (rename(2, b"a\0b.tar"), r"shards\.2\.name"),
        (rename(4, b"\0\0a.tar"), r"shards\.4\.name"),
        (rename(4, b"\0a.tarb"), r"shards\.4\.name"),
        (rename(3, b"s-0.tar"), "the shard 's-0.tar' is listed twice"),
        (rename(1, b"s-0.tar"), "the shard 's-0.tar' is listed twice"),
        (widen, "the column of names is wider than the longest name"),
        (narrow, "the column of names is wider than the longest name"),
    ],
)
def test_impossible_tables_are_refused(change: Callable[[Columns], object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        changed(change).check()


def test_short_names_are_accepted() -> None:
    changed(rename(2, b"a.tar")).check()
    changed(rename(2, b"..tar")).check()


def test_bad_names_are_found_in_any_row() -> None:
    shards = infos(70_000)
    ShardTable.from_infos(shards).check()
    shards.reverse()
    ShardTable.from_infos(shards).check()
    table = ShardTable.from_infos([*shards, shards[69_000]])
    with pytest.raises(ValueError, match=f"the shard '{shards[69_000].name}' is listed twice"):
        table.check()
    table._names[69_999, 0] = ord("\n")
    with pytest.raises(ValueError, match=r"shards\.69999\.name: '\\n-0.tar'"):
        table.check()


def test_no_shards() -> None:
    with pytest.raises(ValueError, match="there are no shards"):
        ShardTable.from_infos([]).check()


# ---------------------------------------------------------------- files that are none


@pytest.mark.parametrize(
    "change",
    [
        lambda columns: columns.pop("names"),
        lambda columns: columns.update(extra=np.zeros(5, dtype=np.uint8)),
        lambda columns: columns.update(names=columns["names"].ravel()),
        lambda columns: columns.update(names=columns["names"].astype(np.int64)),
        lambda columns: columns.update(names=columns["names"][:4]),
        lambda columns: columns.update(num_samples=columns["num_samples"].astype(np.uint32)),
        lambda columns: columns.update(num_samples=columns["num_samples"][:, None]),
        lambda columns: columns.update(digests=columns["digests"][:, :20]),
    ],
)
def test_other_columns(path: Path, change: Callable[[Columns], object]) -> None:
    columns = dict(mmap_safetensors(path))
    change(columns)
    path.write_bytes(arrays_to_safetensors(columns))
    with pytest.raises(ValueError, match="its columns are not those of a table of shards"):
        ShardTable.from_file(path)


def described(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[" * 60_000,
        "[]",
        '"a"',
        '{"a": 1}',
        '{"a": null}',
        described(dtype="F32"),
        described(dtype=[]),
        described(data_offsets=[0]),
        described(data_offsets=[0, 24]),
        described(data_offsets=[-16, 0]),
        described(data_offsets=[-16, 16]),
        described(data_offsets=[16, 0]),
        described(data_offsets=[0, 15]),
        described(data_offsets=["0", "16"]),
        described(shape=[3]),
        described(shape=[2**40, 2**40]),
        described(shape="2"),
        "{" + " " * 70_000 + "}",
        "\xff",
    ],
)
def test_invalid_headers_are_refused(tmp_path: Path, header: Any) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    data = text.encode("latin-1")
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(16))
    with pytest.raises(ValueError, match="it is damaged: "):
        mmap_safetensors(path)


@pytest.mark.parametrize("blanks", range(8))
def test_arrays_need_not_be_aligned(tmp_path: Path, blanks: int) -> None:
    data = json.dumps(described()).encode() + b" " * blanks
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(data).to_bytes(8, "little") + data + np.arange(2).tobytes())
    assert mmap_safetensors(path)["a"].tolist() == [0, 1]


@settings(max_examples=300)
@given(data=st.data())
def test_damage_raises_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    damaged = bytearray(ShardTable.from_infos(infos()).to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, 2 * len(damaged)))])
    try:
        table = ShardTable.from_file(path)
        table.check()
    except ValueError:
        return
    assert len(list(table)) == len(table) > 0
