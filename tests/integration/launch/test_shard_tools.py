"""`tahoe shard index|verify|stat|preview|webdataset|merge|split` as a user runs them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from foreign_shards import by_gnu_tar, by_webdataset, contents, encoded, labelled, photo
from PIL import Image

from data_sharding.format.manifest import read_manifest
from orchestrator.cli.main import main
from orchestrator.launch.compose import compose
from orchestrator.run.rundir import RunDir


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A data set of others with names of classes, one of them in another script."""
    root = tmp_path / "my pets"
    names = ["cat", "dog", "犬"] * 4
    by_webdataset(root / "train/a.tar", labelled(names, "txt"))
    by_gnu_tar(root / "train/b.tar", labelled(names, "txt", first=20))
    by_webdataset(root / "val/a.tar", labelled(["dog", "cat"], "txt", first=90))
    return root


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def tahoe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, where torch needs to be imported only once."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object, code: int = 0) -> Done:
        done = Done(main([str(argument) for argument in arguments]), *capsys.readouterr())
        assert done.code == code, done
        return done

    return run


def test_from_foreign_tars_to_a_checked_data_set(tahoe: Run, pets: Path) -> None:
    first = tahoe("shard", "index", pets, "--label", "txt")
    assert "now has its manifests" in first.out
    assert "val: classes without samples: 犬" in first.out
    again = tahoe("shard", "index", pets, "--label", "txt")
    assert "already has these manifests" in again.out
    other = tahoe("shard", "index", pets, "--label", "none", code=1)
    assert "force" in other.err
    sound = tahoe("shard", "verify", pets)
    assert "Everything is as the manifests" in sound.out

    stat = tahoe("shard", "stat", pets)
    assert "data.mean=[0." in stat.out
    assert "8, 8, 8" in stat.out
    values = json.loads(tahoe("shard", "stat", pets, "--json").out)
    train = values["splits"]["train"]
    mean = ",".join(f"{x:.4f}" for x in train["mean"])
    assert train["override"].startswith(f"data.mean=[{mean}] data.std=[0.")
    assert train["samples_per_class"] == {"cat": 8, "dog": 8, "犬": 8}
    assert values["splits"]["val"]["formats"] == {"JPEG": 2}
    assert values["config"]["url"] == str(pets)

    sheet = pets.parent / "sheet.png"
    tahoe("shard", "preview", pets, "-o", sheet, "--split", "train", "--seed", "3")
    with Image.open(sheet) as image:
        assert image.size[0] > 8 * 160
        assert image.format == "PNG"
    nowhere = tahoe("shard", "preview", pets, "-o", "/none/x.png", code=1)
    assert "cannot write /none/x.png" in nowhere.err


def test_stat_writes_a_config_that_is_a_choice(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stat = ["shard", "stat", str(digits), "--num-workers", "1", "-o"]
    assert main([*stat, "conf/data/mine.yaml"]) == 0
    (point,) = compose(["data=mine"])
    data = point.config.data
    assert (data.name, data.url, data.in_channels) == ("mine", str(digits), 1)
    assert (data.image_size, data.crop.mode, data.num_workers) == (32, "random_crop_padded", 0)
    assert data.mean == (0.3054,)
    for refused in ("conf/data/mine.yaml", "conf/data/cifar10.yaml", "mine.txt"):
        assert main([*stat, refused]) == 1
    assert [path.name for path in (tmp_path / "conf/data").iterdir()] == ["mine.yaml"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("by_pattern", [False, True])
def test_a_proposed_config_trains(
    tahoe: Run, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_pattern: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["digits"]
    shutil.copytree(digits, where[0])
    if by_pattern:
        where = [f"data.{split}=digits/{split}/*.tar" for split in ("train", "val")]
        where.append("data.image='jpg;png'")
        tahoe("shard", "index", *where)
    tahoe("shard", "stat", *where, "-o", "conf/data/mine.yaml")
    tahoe("train", "data=mine", "recipe.epochs=0.1", "tracking=none", "run_dir=run")
    assert RunDir(tmp_path / "run").is_finished


def test_verify_lists_problems_and_exits_with_1(tahoe: Run, pets: Path) -> None:
    cut = encoded(photo(0, (300, 300)))[:3000]
    by_webdataset(
        pets / "train/a.tar", {**labelled(["cat"], "txt"), "[b]": {"jpg": cut, "txt": b"dog"}}
    )
    tahoe("shard", "index", pets, "--label", "txt", "--classes", _classes(pets))
    (pets / "val/a.tar").unlink()
    found = tahoe("shard", "verify", pets, code=1)
    for text in "[b]", "truncated", "is missing", "Copy the shard again", "Replace":
        assert text in found.out
    found = tahoe("shard", "verify", pets, "--json", "--no-decode", code=1)
    values = json.loads(found.out)
    assert not values["ok"]
    assert [(p["split"], p["shard"], p["key"]) for p in values["problems"]] == [
        ("val", "a.tar", "")
    ]


def _classes(root: Path) -> str:
    path = root / "classes.txt"
    path.write_text("cat\ndog\n犬\n", "utf-8")
    return str(path)


def test_new_data_sets_from_shards(tahoe: Run, pets: Path) -> None:
    before = contents(pets)
    wds, anew, both = (pets.parent / name for name in ("wds", "anew", "both"))
    tahoe("shard", "webdataset", pets, wds, "--label", "txt", "--samples-per-shard", "7")
    train = read_manifest(str(wds), "train")
    assert train.classes == ("cat", "dog", "犬")
    assert [shard.num_samples for shard in train.shards] == [6, 6, 6, 6]
    assert contents(pets) == before
    tahoe("shard", "split", wds, anew, "--val-fraction", "0.5", "--seed", "3")
    assert read_manifest(str(anew), "val").num_samples == 12
    tahoe("shard", "merge", wds, anew, both)
    assert read_manifest(str(both), "train").num_samples == 24 + 14
    tahoe("shard", "verify", both)
    assert "is kept" in tahoe("shard", "merge", wds, anew, both).out


def test_shards_of_others_are_inspected_like_files(tahoe: Run, pets: Path) -> None:
    cut = encoded(photo(0, (300, 300)))[:3000]
    samples = {**labelled(["cat"], "txt", first=0), "[b]": {"jpg": cut, "txt": b"dog"}}
    by_webdataset(pets / "train/c.tar", samples)
    out = pets.parent / "out"
    options = ("--label", "txt", "--dedupe", "--shard-bytes", "10kB", "--max-bad-fraction")
    refused = tahoe("shard", "webdataset", pets, out, *options, "0.01", code=1)
    assert "corrupt" in refused.err
    done = tahoe("shard", "webdataset", pets, out, *options, "0.1")
    assert "corrupt: 1 " in done.out
    assert "c.tar: [b]: is truncated" in done.out
    assert "train/c.tar: 0000" in done.out  # the same bytes as in a.tar
    train = read_manifest(str(out), "train")
    assert train.num_samples == 24
    assert len(train.shards) > 2
    tahoe("shard", "verify", out)


def test_invalid_options_are_refused(tahoe: Run, pets: Path) -> None:
    wrong = tahoe("shard", "index", pets, "--label", "jpg", code=1)
    assert "'jpg' holds no labels" in wrong.err
    tahoe("shard", "verify", pets, "--num-workers", "0", code=2)
    wrong = tahoe("shard", "split", pets, "out", "--val-fraction", "0.1", code=1)
    assert "no data set at" in wrong.err


def test_only_a_missing_split_is_named(tahoe: Run, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, first in ("train", 0), ("val", 50):
        by_webdataset(root / split / "a.tar", labelled([1, 2], first=first))
    assert "index val too" in tahoe("shard", "index", root, "--split", "train").out
    assert "too" not in tahoe("shard", "index", root, "--split", "val").out
    out = tmp_path / "out"
    tahoe("shard", "webdataset", root, out, "--relabel")
    assert read_manifest(str(out), "train").classes == ("1", "2")
    (root / "val/a.tar.gz").touch()
    (remark,) = json.loads(tahoe("shard", "verify", root, "--json").out)["remarks"]
    assert (remark["split"], "a.tar.gz" in remark["message"]) == ("val", True)
    assert "a.tar.gz" in tahoe("shard", "verify", root).out
