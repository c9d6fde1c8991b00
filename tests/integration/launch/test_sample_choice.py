"""`data.image`, `data.label` and `data.class_map`: from the command line to the manifests."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import click
import numpy as np
import pytest
from cli_runner import Tahoe
from foreign_shards import by_webdataset, jpeg, png

from data_sharding.errors import DataError
from data_sharding.format.class_map import pin, read_class_map
from data_sharding.format.location import Location
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.sampling.class_balanced import read_class_index
from orchestrator.cli.dataset.inspect import index
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Data
from orchestrator.launch.compose import compose


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def odd(cwd: Path) -> Path:
    """Shards with two images a sample, a nested label, and labels of no class."""
    for split, labels in (("train", [4, -1, 2, 4]), ("val", [2, 4, 7])):
        samples = {
            f"{split}/{i}": {
                "input.jpg": jpeg(i),
                "target.png": png(i),
                "json": json.dumps({"meta": {"label": label}}).encode(),
            }
            for i, label in enumerate(labels)
        }
        by_webdataset(cwd / f"odd/{split}/a.tar", samples)
    return cwd / "odd"


DataOf = Callable[..., Data]


@pytest.fixture
def data_of(values: dict[str, Any]) -> DataOf:
    """Return the config of a data set at some URL with other keys."""

    def replaced(url: object, **keys: object) -> Data:
        return parse(values | {"data": {**values["data"], "url": str(url), **keys}}).data

    return replaced


def manifest(data: Data, split: str = "train") -> Manifest:
    return read_manifest(data.location, split)


def test_a_choice_is_part_of_the_place_of_the_manifests(data_of: DataOf) -> None:
    plain = data_of("x")
    assert plain.location == Location("x")
    images = [data_of("x", image=image) for image in ("jpg;png", "JPG; png")]
    assert images[0].location == images[1].location != plain.location
    labels = [data_of("x", label=label) for label in ("json:a", "cls", "none")]
    several = data_of("x", multi_label=True)
    assert len({data.location for data in (*images, *labels, several, plain)}) == 6


@pytest.mark.parametrize("key", [{"image": "a/b"}, {"label": "jpg"}, {"label": "cls:x"}])
def test_impossible_members_are_refused(data_of: DataOf, key: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        data_of("x", **key)


def test_a_class_map_is_known_by_its_content(cwd: Path, data_of: DataOf) -> None:
    (cwd / "few.txt").write_text("4\n2\n")
    (point,) = compose(["data.class_map=few.txt"])
    first = point.config.data
    assert first.class_map == f"{cwd}/few.txt#sha256={read_class_map('few.txt').sha256}"
    (cwd / "few.txt").rename(cwd / "moved.txt")
    moved = data_of(first.url, class_map=pin("moved.txt"))
    assert moved.location == first.location
    (cwd / "few.txt").write_text("2\n4\n")
    assert data_of(first.url, class_map=pin("few.txt")).location != first.location
    with pytest.raises(DataError, match="has changed"):
        read_class_map(str(first.class_map))
    with pytest.raises(DataError, match="no class map"):
        pin("none.txt")
    with pytest.raises(ConfigError, match="label=none"):
        data_of("x", class_map=pin("few.txt"), label="none")


def test_the_chosen_members_and_classes_are_counted_once(
    cwd: Path, odd: Path, data_of: DataOf
) -> None:
    (cwd / "few.csv").write_text("old,new\n4,big\n2,small\n")
    members = {"image": "input.jpg", "label": "json:meta.label"}
    chosen = data_of(odd, **members, class_map=pin(f"{cwd}/few.csv"))
    with pytest.raises(DataError, match="not counted yet"):
        manifest(chosen)
    overrides = [f"data.{name}={value}" for name, value in members.items()]
    overrides = [f"data.url={odd}", *overrides, "data.class_map=few.csv"]
    index.main([*overrides, "--num-workers", "1"], standalone_mode=False)
    assert not (odd / "train/manifest.json").exists()  # that of the set, which nobody counted
    (cwd / "few.csv").unlink()
    train, val = manifest(chosen), manifest(chosen, "val")
    assert train.classes == val.classes == ("big", "small")
    assert (train.num_samples, val.num_samples) == (3, 2)
    assert (train.image, train.class_labels) == ("input.jpg", ((4,), (2,)))
    with pytest.raises(DataError, match="not counted yet"):
        manifest(data_of(odd, **members | {"image": "target.png"}))


def test_the_manifest_of_the_set_serves_where_it_agrees(
    cwd: Path, odd: Path, data_of: DataOf
) -> None:
    flags = ["--image", "input.jpg", "--label", "json:meta.label", "--class-map", "few.txt"]
    (cwd / "few.txt").write_text("4\n2\n")
    index.main([str(odd), *flags, "--num-workers", "1"], standalone_mode=False)
    own = read_manifest(str(odd), "train")
    few = pin("few.txt")
    for agrees in ({"image": "input.jpg"}, {"label": "json:meta.label"}, {"class_map": few}):
        assert manifest(data_of(odd, **agrees)) == own
    (cwd / "few.txt").write_text("2\n")
    for differs in ({"image": "target.png"}, {"label": "cls"}, {"class_map": pin("few.txt")}):
        with pytest.raises(DataError, match="not yet as asked for") as caught:
            manifest(data_of(odd, **differs))
        assert "index" in caught.value.hint


@pytest.mark.slow
def test_training_on_three_of_ten_classes(cwd: Path, digits: Path) -> None:
    tahoe = Tahoe(cwd)
    with pytest.raises(click.UsageError, match=r"data\.label"):
        index.main(["data=digits", "--label", "cls"], standalone_mode=False)
    copytree(digits, cwd / "set")
    (cwd / "three.txt").write_text("8\n0\n3\n")
    data = ("data=digits", "data.url=set", "data.class_map=three.txt", "data.name=three")
    told = tahoe("shard", "index", *data)
    assert "of 7 labels outside the class map" in told.stderr
    output = ("-o", "conf/data/mine.yaml")
    tahoe("shard", "stat", *data, "--class-index", "--num-samples", "9", *output)
    composed = compose(data)[0].config.data
    assert compose(["data=mine"])[0].config.data.location == composed.location
    train = read_manifest(composed.location, "train")
    balanced = read_class_index(composed.location, "train", train)
    assert np.diff(balanced.ends, prepend=0).sum() == train.num_samples
    tahoe("shard", "preview", *data, "--num", "3", "-o", "sheet.png")
    short = ("recipe.steps=12", "recipe.class_balanced=true", "launcher.nproc_per_node=2")
    tahoe("train", *data, *short, "tracking=none", "run_dir=run")
    (cwd / "three.txt").unlink()
    report = json.loads(tahoe("evaluate", "run", "--confusion-matrix", "t.csv", "--json").stdout)
    assert report["classes"] == ["8", "0", "3"]
    assert report["num_samples"] == read_manifest(composed.location, "val").num_samples
    assert all(top1 > 60 for top1 in report["class_top1"])
    assert (cwd / "t.csv").read_text().startswith(",8,0,3,none")
