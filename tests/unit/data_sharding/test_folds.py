"""Folds are equal in size and classes; one is validated on, and all others are trained on."""

import json
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from foreign_shards import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from data_sharding.errors import DataError
from data_sharding.format.location import Location
from data_sharding.format.manifest import read_manifest, read_manifests
from data_sharding.sources.base import Labels, ListedImages, Source, split_into_folds
from data_sharding.sources.csv_file import Columns, csv_file
from data_sharding.sources.folder import folder
from data_sharding.storage.shard_store import open_store
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.verify import verify
from data_sharding.writing.dataset_writer import Dataset, write_dataset
from data_sharding.writing.shard_writer import ImageChecks
from orchestrator.cli.dataset.group import shard

NUM_IMAGES = 23


def images(root: Path) -> Path:
    for number in range(NUM_IMAGES):
        path = root / "abc"[min(number // 10, 2)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def write(source: Source, url: Path, checks: ImageChecks | None = None) -> Dataset:
    return write_dataset(source, str(url), seed=0, samples_per_shard=3, checks=checks)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the URL of 23 images of three classes in four folds."""
    root = tmp_path_factory.mktemp("folds")
    write(folder(images(root / "in"), num_folds=4), root / "set")
    return root / "set"


def keys(location: Location, split: str) -> Counter[str]:
    manifest = read_manifest(location, split)
    store = open_store(location, split, None, manifest.rule)
    readers = [(store.open(shard), shard.num_samples) for shard in manifest.shards]
    return Counter(reader.key(i) for reader, num_samples in readers for i in range(num_samples))


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=40),
    num_folds=st.integers(2, 12),
    kind=st.sampled_from(["single", "multi", "none"]),
    seed=st.integers(0, 3),
)
def test_folds_differ_by_one_image_at_most(
    labels: list[int], num_folds: int, kind: str, seed: int
) -> None:
    values, ends = np.array(labels), np.arange(1, len(labels) + 1)
    table = {"single": Labels(values), "multi": Labels(values, ends), "none": None}[kind]
    paths = [f"{n}.jpg" for n in range(len(labels))]
    source = ListedImages.of(Path("x"), paths, table, [1] * len(labels))
    if num_folds > len(labels):
        with pytest.raises(DataError):
            split_into_folds(source, "abcde", num_folds, seed)
        return
    splits, _, notes = split_into_folds(source, "abcde", num_folds, seed)
    members = [split.indices.tolist() for split in splits.values()]
    assert [*splits] == [f"fold-{n}" for n in range(num_folds)]
    assert sorted(chain.from_iterable(members)) == [*range(len(labels))]
    assert np.ptp([len(fold) for fold in members]) <= 1
    again, _, _ = split_into_folds(source, "abcde", num_folds, seed)
    assert members == [split.indices.tolist() for split in again.values()]
    if kind == "single":
        counts = np.array([np.bincount(values[fold], minlength=5) for fold in members])
        assert np.ptp(counts, axis=0).max() <= 1
        assert bool(notes) == any(0 < n < num_folds for n in counts.sum(axis=0))


def test_the_seed_chooses_the_folds(tmp_path: Path) -> None:
    root = images(tmp_path)
    first, other = (folder(root, None, seed, num_folds=4).splits["fold-0"] for seed in (0, 1))
    assert [first[i].key for i in range(5)] != [other[i].key for i in range(5)]


def test_a_fold_is_val_and_the_others_are_train(written: Path) -> None:
    manifests = read_manifests(str(written))
    assert [*manifests] == [f"fold-{n}" for n in range(4)]
    assert {m.classes for m in manifests.values()} == {("a", "b", "c")}
    everything, as_val = Counter[str](), Counter[str]()
    for fold in range(4):
        location = Location(str(written), fold=fold)
        train, val = keys(location, "train"), keys(location, "val")
        assert not train & val
        assert max((train | val).values()) == 1
        everything, as_val = train | val, as_val + val
        assert len(everything) == NUM_IMAGES
        prefixes = {shard.name[:7] for shard in read_manifest(location, "train").shards}
        assert prefixes == {f"fold-{n}/" for n in range(4) if n != fold}
        assert read_manifest(location, "val") == manifests[f"fold-{fold}"]
    assert as_val == everything
    trains = [read_manifest(Location(str(written), fold=fold), "train") for fold in range(4)]
    assert len({manifest.fingerprint for manifest in trains}) == 4


def test_files_about_the_train_split_of_each_fold_are_apart(written: Path) -> None:
    places = [Location(str(written), fold=fold).files("train", "x.npy") for fold in range(4)]
    assert len({url for urls in places for url in urls}) == 8
    assert Location(str(written), fold=1).files("val", "x.npy")[0] == f"{written}/fold-1/x.npy"


def test_wrong_numbers_are_refused_with_the_right_ones(written: Path, tmp_path: Path) -> None:
    for fold, split in ((4, "train"), (4, "val"), (None, "train")):
        with pytest.raises(DataError) as caught:
            read_manifest(Location(str(written), fold=fold), split)
        assert caught.value.value == fold
        assert "from 0 to 3" in caught.value.hint
    write(folder(images(tmp_path / "in"), 0.5), tmp_path / "no folds")
    for url in ("no folds", "nothing"):
        with pytest.raises(DataError, match="no folds at"):
            read_manifest(Location(str(tmp_path / url), fold=0), "train")
    with pytest.raises(DataError) as caught:
        Location(str(written), manifest="elsewhere", fold=0)
    assert caught.value.value == 0


def test_folds_are_not_indexed(written: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_shards(str(written), None)
    assert "`fold`" in caught.value.hint


def test_folds_of_two_writings_are_not_mixed(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "set")
    manifest = tmp_path / "set/fold-2/manifest.json"
    values = json.loads(manifest.read_text())
    values["source"]["fold_seed"] = 1
    manifest.write_text(json.dumps(values))
    for fold, named in ((0, "fold-2"), (2, "fold-0")):
        with pytest.raises(DataError) as caught:
            read_manifest(Location(str(tmp_path / "set"), fold=fold), "train")
        assert caught.value.value == named
    shutil.rmtree(tmp_path / "set/fold-1")
    with pytest.raises(DataError, match="fold-1"):
        read_manifest(Location(str(tmp_path / "set"), fold=3), "train")


def test_verify_reads_all_folds_or_the_two_splits_of_one(written: Path) -> None:
    for where in (str(written), Location(str(written), fold=2)):
        report = verify(where)
        assert not report.problems
        assert sum(m.num_samples for m in report.manifests.values()) == NUM_IMAGES


def test_other_splits_are_another_set(tmp_path: Path) -> None:
    root, url = images(tmp_path / "in"), tmp_path / "set"
    checks = ImageChecks()
    assert not write(folder(root, num_folds=2), url, checks).reused
    assert write(folder(root, num_folds=2), url, checks).reused
    for source in folder(root, num_folds=3), folder(root, 0.5), folder(root, None, 1, num_folds=2):
        with pytest.raises(DataError, match="another"):
            write(source, url, checks)


def test_one_copy_of_an_image_is_in_one_fold(tmp_path: Path) -> None:
    root = images(tmp_path / "in")
    for number in range(6):
        (root / "a" / f"copy{number}.jpg").write_bytes(jpeg(number))
    url = tmp_path / "set"
    dataset = write(folder(root, num_folds=4), url, ImageChecks(dedupe=True))
    assert sum(m.num_samples for m in dataset.manifests.values()) == NUM_IMAGES
    assert dataset.report is not None
    assert dataset.report["rules"]["duplicate"]["count"] == 6


def test_several_labels_are_counted_in_the_other_folds(tmp_path: Path) -> None:
    root = images(tmp_path)
    rows = [
        f"{p.relative_to(root)},{'x|y' if n % 2 else 'y'}"
        for n, p in enumerate(sorted(root.rglob("*.jpg")))
    ]
    (root / "x.csv").write_text("\n".join(("path,label", *rows)))
    write(csv_file(root / "x.csv", Columns(separator="|"), num_folds=3), tmp_path / "set")
    url = str(tmp_path / "set")
    train = read_manifest(Location(url, fold=0), "train")
    each = [m.samples_per_class for name, m in read_manifests(url).items() if name != "fold-0"]
    assert train.samples_per_class == tuple(np.sum(each, axis=0).tolist())


def test_validation_images_and_folds_exclude_each_other(tmp_path: Path) -> None:
    root = images(tmp_path / "in")
    with pytest.raises(DataError) as caught:
        folder(root, 0.5, num_folds=2)
    assert caught.value.value == 0.5
    (root / "val").mkdir()
    (root / "train").mkdir()
    for name in "abc":
        (root / name).rename(root / "train" / name)
    with pytest.raises(DataError) as caught:
        folder(root, num_folds=2)
    assert caught.value.value == 2
    assert str(root / "train") in caught.value.hint


def test_the_command_line_writes_folds_and_says_how_to_use_them(tmp_path: Path) -> None:
    images(tmp_path / "in")
    arguments = ["folder", str(tmp_path / "in"), str(tmp_path / "set"), "--folds", "3"]
    done = CliRunner().invoke(shard, [*arguments, "--num-workers", "1"], catch_exceptions=False)
    assert "data.fold=0 (to 2)" in done.output
    assert [*read_manifests(str(tmp_path / "set"))] == ["fold-0", "fold-1", "fold-2"]


def test_an_unfinished_set_makes_way_for_one_of_fewer_folds(tmp_path: Path) -> None:
    root, url = images(tmp_path / "in"), tmp_path / "set"
    bad = folder(root, num_folds=3).splits["fold-0"][0].origin
    sound = Path(bad).read_bytes()
    Path(bad).write_bytes(b"no image")
    with pytest.raises(DataError):
        write(folder(root, num_folds=3), url, ImageChecks(max_bad_fraction=0))
    assert list(url.glob("fold-2/*.tar"))
    Path(bad).write_bytes(sound)
    write(folder(root, num_folds=2), url, ImageChecks(max_bad_fraction=0))
    assert not list(url.glob("fold-2/*.tar"))
    assert sorted(read_manifests(str(url))) == ["fold-0", "fold-1"]
