"""Data sets in other layouts are refused with a command that makes shards of them."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_shards import by_webdataset, jpeg, labelled

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.sample_rule import SampleRule
from data_sharding.tools.expand_patterns import find_named_shards
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards


def command_for(root: Path, split: str | None = None) -> str:
    """Return the command that the error about a data set names."""
    with pytest.raises(DataError) as raised:
        find_shards(str(root), split)
    (command,) = re.findall("`((?:gunzip|python|tahoe) .*)`", raised.value.hint)
    return str(command)


def run(command: str, directory: Path) -> None:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(command, shell=True, check=True, cwd=directory, env={"PATH": path})


@pytest.mark.parametrize("extension", ["tar.gz", "tgz"])
def test_compressed_tars(tmp_path: Path, extension: str) -> None:
    root = tmp_path / "a set"
    tar = by_webdataset(root / "train/0.tar", labelled([0, 1]))
    (root / f"train/0.{extension}").write_bytes(gzip.compress(tar.read_bytes()))
    tar.unlink()
    run(command_for(root), tmp_path)
    manifests, _ = index_shards(find_shards(str(root), "train"), SampleRule())
    assert manifests["train"].num_samples == 2


def test_nested_directories(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/part-0/0.tar", labelled([0, 1]))
    command = command_for(tmp_path)
    (pattern,) = re.findall(r"data\.train=([^ ']*)", command)
    found = find_named_shards(Location(train=(pattern,)), ["train"])
    assert found["train"].urls == [str(tmp_path / "train/part-0/0.tar")]


@pytest.mark.slow
@pytest.mark.long
def test_parquet_files(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": {"bytes": jpeg(i), "path": f"{i}.jpg"}, "label": i % 3} for i in range(6)]
    (tmp_path / "data").mkdir()
    for number in range(2):
        table = pa.Table.from_pylist(rows[3 * number : 3 * number + 3])
        pq.write_table(table, tmp_path / f"data/train-0000{number}-of-00002.parquet")
    command = command_for(tmp_path / "data")
    (tmp_path / "out/train").mkdir(parents=True)
    run(command, tmp_path / "out/train")
    shards = find_shards(str(tmp_path / "out"), "train")
    _, counts = index_shards(shards, SampleRule())
    assert counts["train"] == {"0": 2, "1": 2, "2": 2}


def test_litdata_has_no_command(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in "index.json", "chunk-0-0.bin":
        (tmp_path / "train" / name).write_text("{}")
    with pytest.raises(DataError) as raised:
        find_shards(str(tmp_path), None)
    assert "litdata" in raised.value.hint
