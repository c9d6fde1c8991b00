"""Shards that are taken where they lie: flat, in several places, in a store, read-only."""

import json
import re
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree

import pytest
from cli_runner import Tahoe

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.manifest import (
    read_manifest,
    read_manifests,
    url_of,
    write_manifest,
)
from data_sharding.format.sample_rule import SampleRule
from data_sharding.tools.expand_patterns import find_named_shards, refuse_other_listing
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards, write_manifests
from data_sharding.tools.verify import verify


@pytest.fixture(scope="module")
def flat(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the digits' shards of both splits side by side."""
    directory = tmp_path_factory.mktemp("flat")
    for shard in digits.glob("*/*.tar"):
        copyfile(shard, directory / f"my {shard.parent.name}-{shard.stem[-4:]}.tar")
    return directory


@pytest.fixture
def location(flat: Path) -> Location:
    return Location(train=(f"{flat}/my train-{{0000..0002}}.tar",), val=(f"{flat}/my val-*.tar",))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_braces_and_globs_are_expanded(location: Location) -> None:
    found = find_named_shards(location)
    assert found["train"].names == tuple(f"my train-{i:04d}.tar" for i in range(3))
    assert found["val"].names == ("my val-0000.tar",)


def test_several_places_keep_their_order(flat: Path, digits: Path) -> None:
    several = Location(train=(f"{flat}/my train-0001.tar", f"{digits}/train/shard-000000.tar"))
    (found,) = find_named_shards(several, ["train"]).values()
    assert found.urls == [f"{flat}/my train-0001.tar", f"{digits}/train/shard-000000.tar"]


@pytest.mark.parametrize("pattern", ["nothing-*.tar", "my train-{0000.tar"])
def test_a_pattern_of_nothing_is_refused(flat: Path, pattern: str) -> None:
    with pytest.raises(DataError) as error:
        find_named_shards(Location(train=(f"{flat}/{pattern}",)), ["train"])
    assert error.value.value == f"{flat}/{pattern}"


def test_a_directory_of_both_splits_is_refused(flat: Path) -> None:
    with pytest.raises(DataError) as error:
        find_named_shards(Location(train=(str(flat),)), ["train"])
    assert error.value.value == ["my val-0000.tar"]


def test_a_shard_of_both_splits_is_refused(flat: Path) -> None:
    shard = (f"{flat}/my train-0000.tar",)
    with pytest.raises(DataError, match="twice"):
        find_named_shards(Location(train=shard, val=shard))


def test_shards_that_are_not_counted_name_the_command(location: Location) -> None:
    with pytest.raises(DataError) as error:
        read_manifest(Location(train=location.train, rules="other"), "train")
    assert "index" in error.value.hint


def test_flat_shards_are_indexed_and_describe_the_same_samples(
    location: Location, digits: Path
) -> None:
    shards = find_named_shards(location)
    manifests, _ = index_shards(shards, SampleRule())
    assert write_manifests(location, shards, manifests, force=False)
    assert not write_manifests(location, shards, manifests, force=False)
    for split in ("train", "val"):
        ours, original = read_manifest(location, split), read_manifest(str(digits), split)
        assert ours.shards.num_samples.tolist() == original.shards.num_samples.tolist()
        assert [s.sha256 for s in ours.shards] == [s.sha256 for s in original.shards]
        assert ours.classes == original.classes
        assert Path(url_of(location, split)).parent == Path(location.base(split))
    assert verify(location).problems == ()


@pytest.mark.slow
def test_a_run_on_flat_shards(tahoe: Tahoe, location: Location) -> None:
    overrides = [f"data.train={location.train[0]}", f"data.val={location.val[0]}"]
    tahoe("shard", "index", *overrides)
    tahoe("train", *overrides, "run_dir=run", "recipe.steps=2", "tracking=none")
    evaluated = json.loads(tahoe("evaluate", "--json", "run").stdout)
    assert evaluated["num_samples"] == read_manifest(location, "val").num_samples
    tahoe("shard", "index", overrides[1])  # a set to evaluate on has no train
    again = json.loads(tahoe("evaluate", "--json", "--data", location.val[0], "run").stdout)
    losses = [run["loss"] for found in (evaluated, again) for run in found["runs"].values()]
    assert losses[0] == losses[1]


def test_shards_side_by_side_are_refused_with_the_patterns_that_work(flat: Path) -> None:
    with pytest.raises(DataError) as error:
        find_shards(str(flat), None)
    train, val = re.findall(r"'data\.(?:train|val)=(.+?)'", error.value.hint)
    assert find_named_shards(Location(train=(train,), val=(val,)))["val"].names == (
        "my val-0000.tar",
    )


def test_a_url_of_a_shard_is_no_data_set(flat: Path) -> None:
    with pytest.raises(DataError) as error:
        read_manifest(f"{flat}/my train-{{0000..0002}}.tar", "train")
    assert "`train`" in error.value.hint


def index_now(location: Location, *, force: bool = False) -> None:
    shards = find_named_shards(location)
    manifests, _ = index_shards(shards, SampleRule())
    write_manifests(location, shards, manifests, force=force)


def test_a_shard_that_is_added_later_is_not_left_out_in_silence(flat: Path, tmp_path: Path) -> None:
    directory = tmp_path / "growing"
    copytree(flat, directory)
    (added := directory / "my train-0002.tar").rename(tmp_path / "later.tar")
    location = Location(train=(f"{directory}/my train-*.tar",), val=(f"{directory}/my val-*.tar",))
    index_now(location)
    refuse_other_listing(location, "train", read_manifest(location, "train"))
    (tmp_path / "later.tar").rename(added)
    with pytest.raises(DataError) as error:
        refuse_other_listing(location, "train", read_manifest(location, "train"))
    assert error.value.value == location.patterns("train")


def test_a_manifest_that_cannot_be_replaced_is_not_hidden(
    flat: Path, tmp_path: Path, location: Location
) -> None:
    index_now(location)
    beside = Path(url_of(location, "train"))
    manifest = read_manifest(location, "train")
    beside.unlink()
    beside.mkdir()  # in its place nothing can be written, also by root
    with pytest.raises(OSError, match="manifest"):
        write_manifest(location, "train", manifest, anywhere=True)
    beside.rmdir()


def test_a_relative_place_has_the_same_manifest(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = Location(train=tuple(Path(p).name for p in location.train))
    monkeypatch.chdir(Path(location.base("train")))
    assert relative.files("train", "m.json")[-1] == location.files("train", "m.json")[-1]


@pytest.mark.parametrize("spelling", ["file://{}", "{}/../{name}", "{}"])
def test_globs_in_directories_keep_the_spelling_of_the_url(digits: Path, spelling: str) -> None:
    root = spelling.format(digits, name=digits.name)
    (found,) = find_named_shards(Location(train=(f"{root}/tr*/*.tar",)), ["train"]).values()
    assert found.url == root
    assert set(found.names) == {f"train/{shard.name}" for shard in digits.glob("train/*.tar")}


def test_verify_checks_both_splits_under_rules(location: Location, flat: Path) -> None:
    index_now(location)
    rules = json.dumps({"image": None, "label": "single cls", "class_map_sha256": None})
    assert set(read_manifests(replace(location, rules=rules))) == {"train", "val"}


def test_names_that_are_no_tars_are_refused_before_they_are_read(flat: Path) -> None:
    with pytest.raises(DataError) as error:
        find_named_shards(Location(train=(f"{flat}/x-{{0..1}}.bin",)), ["train"])
    assert error.value.value == "x-0.bin"
