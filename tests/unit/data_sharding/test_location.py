"""Where shards and manifests are: patterns, names below a base, files beside and elsewhere."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_sharding.errors import DataError
from data_sharding.format.location import (
    Location,
    check_shard_name,
    find_file,
    shard_url,
    write_files,
)

FLAT = Location(train=("s3://b/in-train-{0000..1023}.tar",), val=("s3://b/in-val-*.tar",))


@pytest.mark.parametrize(
    ("patterns", "base"),
    [
        (["s3://bucket/a/x-{000..099}.tar"], "s3://bucket/a"),
        (["s3://bucket/a"], "s3://bucket/a"),
        (["s3://bucket/a/*/x.tar"], "s3://bucket/a"),
        (["s3://bucket/a/x.tar", "s3://bucket/b/y.tar"], "s3://bucket"),
        (["s3://a/x.tar", "s3://b/x.tar"], ""),
        (["s3://a/x.tar", "gs://a/x.tar"], ""),
        (["https://host/x-{0,1}.tar", "https://host/d/y.tar"], "https://host"),
        (["/data/train", "/data/more/x.tar"], "/data"),
        (["/data/x.tar", "s3://b/x.tar"], ""),
        (["hf://datasets/timm/imagenet-1k-wds/t-{0..9}.tar"], "hf://datasets/timm/imagenet-1k-wds"),
    ],
)
def test_the_base_is_the_directory_that_all_shards_are_below(
    patterns: list[str], base: str
) -> None:
    assert Location(train=tuple(patterns)).base("train") == base


def test_a_url_has_its_splits_in_directories() -> None:
    location = Location("s3://b/set/")
    assert location.base("val") == "s3://b/set/val"
    assert location.shard_url("val", "shard-000000.tar") == "s3://b/set/val/shard-000000.tar"
    assert location.files("val", "manifest.json")[0] == "s3://b/set/val/manifest.json"


def test_a_copy_elsewhere_finds_the_manifest_beside_it() -> None:
    moved = Location(train=("gs://c/d/in-train-{0000..1023}.tar",))
    beside, in_cache = FLAT.files("train", "manifest.json")
    beside_moved, in_cache_moved = moved.files("train", "manifest.json")
    assert beside.removeprefix("s3://b/") == beside_moved.removeprefix("gs://c/d/")
    assert in_cache != in_cache_moved  # two sets may have shards of the same names


def test_splits_and_rules_have_files_of_their_own() -> None:
    same_patterns = Location(train=FLAT.train, val=FLAT.train)
    with_rules = Location(train=FLAT.train, val=FLAT.val, rules="json:label")
    files = [
        file
        for location, split in (
            (same_patterns, "train"),
            (same_patterns, "val"),
            (with_rules, "train"),
        )
        for file in location.files(split, "manifest.json")
    ]
    assert len({*files}) == len(files)


def test_a_given_directory_holds_all_manifests() -> None:
    location = Location("s3://b/set", manifest="/mine")
    (file,) = location.files("train", "manifest.json")
    assert Path(file).parent == Path("/mine")


def test_a_split_without_patterns_is_refused() -> None:
    with pytest.raises(DataError) as error:
        Location(train=("a",)).base("val")
    assert "`val`" in error.value.hint


@pytest.mark.parametrize(
    "name", ["a.tar", "d/e f/ü (1).TAR", "s3://b/a.tar", "/abs/a.tar", "..a.tar"]
)
def test_usable_names(name: str) -> None:
    assert check_shard_name(name) == name


@pytest.mark.parametrize(
    "name", ["../a.tar", "d/../a.tar", "./a.tar", "a.tgz", "d//a.tar", ".tar/", "a\n.tar", ""]
)
def test_unusable_names(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        check_shard_name(name)


@given(st.text(max_size=20).map(lambda text: text + ".tar"))
def test_no_name_leads_out_of_its_base(name: str) -> None:
    try:
        url = shard_url("/data/set", check_shard_name(name))
    except (ValueError, DataError):
        return
    assert Path(url).resolve().is_relative_to("/data/set") or "\0" in url


def test_files_are_written_beside_the_shards_or_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    location = Location(train=(f"{tmp_path}/shards/x-*.tar",))
    (tmp_path / "shards").write_text("a file, in which nothing can be written, also by root")
    write = lambda url_of: _write(url_of("manifest.json"))  # noqa: E731
    with pytest.raises(OSError, match="shards"):
        write_files(location, "train", write)
    write_files(location, "train", write, anywhere=True)
    assert Path(find_file(location, "train", "manifest.json")).is_relative_to(tmp_path / "cache")

    (tmp_path / "shards").unlink()
    write_files(location, "train", write, anywhere=True)
    assert Path(find_file(location, "train", "manifest.json")).parent == tmp_path / "shards"


def _write(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("{}")
