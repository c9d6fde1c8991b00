"""Shards of others get a correct manifest, or an error that says what was found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from foreign_shards import by_gnu_tar, by_webdataset, contents, jpeg, labelled, photo, png

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest, read_manifest, write_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.shards import from_webdataset
from data_sharding.tools.find_shards import find_shards
from data_sharding.tools.index import index_shards, read_class_names, write_manifests

CLS, TXT = SampleRule(), SampleRule(LabelRule(extension="txt"))


def index(
    root: Path,
    rule: SampleRule = CLS,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    force: bool = False,
    pattern: str = "*.tar",
    num_workers: int = 1,
) -> tuple[dict[str, Manifest], bool]:
    found = find_shards(str(root), split, pattern)
    manifests, _ = index_shards(found, rule, ReadOptions(num_workers=num_workers), classes=classes)
    return manifests, write_manifests(str(root), found, manifests, force=force)


def refusal(root: Path, rule: SampleRule = CLS, **settings: Any) -> DataError:
    before = contents(root)
    with pytest.raises(DataError) as caught:
        index(root, rule, **settings)
    assert contents(root) == before
    return caught.value


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Two tars of webdataset and one of GNU tar, with integer labels."""
    root = tmp_path / "sét of others"
    by_webdataset(root / "train/a-000.tar", labelled([0, 1, 2, 0]))
    by_gnu_tar(root / "train/b.tar", labelled([2, 2, 4], first=10))
    by_webdataset(root / "val/v.tar", labelled([1, 0], first=20))
    return root


@pytest.mark.parametrize("num_workers", [1, 2])
def test_foreign_shards_get_manifests(numbered: Path, num_workers: int) -> None:
    before = contents(numbered)
    manifests, is_new = index(numbered, num_workers=num_workers)
    assert is_new
    train, val = (read_manifest(str(numbered), split) for split in ("train", "val"))
    assert manifests == {"train": train, "val": val}
    assert train.classes == val.classes == ("0", "1", "2", "3", "4")
    assert [(s.name, s.num_samples) for s in train.shards] == [("a-000.tar", 4), ("b.tar", 3)]
    for shard in train.shards:
        path = numbered / "train" / shard.name
        assert shard.num_bytes == path.stat().st_size
        assert shard.sha256 == before[f"train/{shard.name}"]
        with ShardReader(path, shard, rule=train.rule) as reader:
            assert len(reader) == shard.num_samples
    new = {"train/manifest.json", "val/manifest.json"}
    assert {
        name: digest for name, digest in contents(numbered).items() if name not in new
    } == before


def test_an_equal_manifest_is_kept_and_another_refused(numbered: Path) -> None:
    index(numbered)
    before = contents(numbered)
    assert not index(numbered)[1]
    assert contents(numbered) == before
    assert "`force`" in refusal(numbered, classes=["a", "b", "c", "d", "e"]).hint
    by_webdataset(numbered / "train/a-000.tar", labelled([0, 1, 2, 3]))
    error = refusal(numbered)
    assert error.value == f"{numbered}/train/manifest.json"
    assert "2 shards, 7 samples, 5 classes" in error.problem
    assert index(numbered, force=True)[1]
    assert (
        read_manifest(str(numbered), "train").shards[0].sha256
        == (contents(numbered)["train/a-000.tar"])
    )


def test_counts_of_classes(numbered: Path) -> None:
    found = find_shards(str(numbered), None)
    _, counts = index_shards(found, CLS)
    assert counts["train"] == {"0": 2, "1": 1, "2": 3, "3": 0, "4": 1}
    assert counts["val"]["3"] == 0


def test_names_of_classes_are_sorted_or_given(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled(["犬", "cat", "ä\n"], "txt"))
    by_webdataset(tmp_path / "val/a.tar", labelled(["cat"], "txt"))
    assert index(tmp_path, TXT)[0]["val"].classes == ("cat", "ä", "犬")
    given = ["犬", "cat", "ä", "none yet"]
    assert index(tmp_path, TXT, classes=given, force=True)[0]["train"].classes == tuple(given)
    assert refusal(tmp_path, TXT, classes=["cat", "ä"]).value == ["犬"]


def test_fields_of_json_and_several_labels(tmp_path: Path) -> None:
    labels = [{"meta": {"ids": ids}} for ids in ([0, 2, 0], [], [1, 0])]
    by_webdataset(tmp_path / "train/a.tar", labelled(labels, "json"))
    rule = SampleRule(LabelRule("multi", "json", "meta.ids"))
    assert index(tmp_path, rule)[0]["train"].classes == ("0", "1", "2")
    manifest = read_manifest(str(tmp_path), "train")
    assert (manifest.rule, manifest.samples_per_class) == (rule, (2, 1, 1))
    write_manifest(str(tmp_path), "train", replace(manifest, samples_per_class=None))
    assert read_manifest(str(tmp_path), "train").samples_per_class is None
    index(tmp_path, rule)  # which adds what was not counted
    assert read_manifest(str(tmp_path), "train") == manifest
    wrong_field = refusal(tmp_path, SampleRule(LabelRule("multi", "json", "ids")))
    assert "multi json under 'ids'" in wrong_field.hint
    assert "begins with" not in wrong_field.problem


def test_no_labels_at_all(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", {"x": {"jpg": jpeg(0)}, "y": {"jpg": jpeg(1)}})
    manifests, _ = index(tmp_path, SampleRule(LabelRule("none")))
    assert manifests["train"].num_samples == 2
    assert "x.jpg, y.jpg" in refusal(tmp_path).problem


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("Training", "test")])
def test_synonyms_of_split_directories(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, train: str, val: str
) -> None:
    root = tmp_path / "set"
    by_webdataset(root / train / "a.tar", labelled([0, 1, 1]))
    by_webdataset(root / val / "a.tar", labelled([1, 0], first=20))
    source = from_webdataset([str(root)], CLS, ReadOptions(tmp_path))
    assert {split: len(mine) for split, mine in source.splits.items()} == {"train": 3, "val": 2}
    assert f"of val are those in {val}/" in caplog.text
    for _ in range(2):
        assert index(root)[0]["val"].num_samples == 2
    assert (root / "val/a.tar").resolve() == root / val / "a.tar"
    assert "not used" not in caplog.text


@pytest.mark.parametrize("verb", ["index", "webdataset"])
def test_unused_tars_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    for where in "train/a", "train/sub/a", "train/sub/b", "val/a", "validation/a", "test/a", "a":
        by_webdataset(tmp_path / f"{where}.tar", labelled([0, 1], first=len(where) * 10))
    (tmp_path / "val/link").symlink_to(tmp_path / "train/sub")
    (tmp_path / "flat.tar").symlink_to("train/a.tar")  # of a shard that is used
    if verb == "index":
        index(tmp_path)
    else:
        from_webdataset([str(tmp_path)], CLS, ReadOptions(tmp_path / "scratch"))
    (message,) = [record.getMessage() for record in caplog.records]
    unused = message.partition("not used: ")[2].partition(". Move")[0]
    assert unused == (
        "1 in ./ (first a.tar), 1 in test/ (first a.tar), 1 in validation/ (first a.tar), "
        "2 in train/sub/ (first a.tar), 2 in val/link/ (first a.tar)"
    )


def test_flat_shards_are_linked_into_the_split(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    by_webdataset(root / "in1k-train-00.tar", labelled([0, 1]))
    by_webdataset(root / "in1k-validation-00.tar", labelled([1, 0]))
    before = contents(root)
    assert "in1k-validation-*.tar" in refusal(root).hint
    index(root, split="train", pattern="*-train-*.tar")
    index(root, split="val", pattern="*-validation-*.tar")
    assert read_manifest(str(root), "val").shards[0].name == "in1k-validation-00.tar"
    link = root / "train/in1k-train-00.tar"
    assert link.is_symlink()
    assert str(link.readlink()) == "../in1k-train-00.tar"
    assert {name: digest for name, digest in contents(root).items() if "/" not in name} == before
    assert not index(root)[1]  # now it is a data set like any other


def test_missing_shards_and_bad_urls_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").value == str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Protocol not known"):
        find_shards("nope://x", None)
    (tmp_path / "train.tar.gz").write_bytes(b"x")
    assert "train.tar.gz" in refusal(tmp_path).problem
    by_webdataset(tmp_path / "s/train/a.tar", labelled([0]))
    assert "directory above" in refusal(tmp_path / "s/train").hint
    assert "val/*.tar" in refusal(tmp_path / "s", split="val").problem


def test_all_unusable_shards_are_named(tmp_path: Path) -> None:
    train = tmp_path / "train"
    by_webdataset(train / "empty.tar", {})
    (train / "notes.tar").write_bytes(b"not a tar" * 200)
    whole = by_webdataset(train / "cut.tar", labelled([0, 1])).read_bytes()
    (train / "cut.tar").write_bytes(whole[: len(whole) // 2])
    by_webdataset(train / "good.tar", labelled([0, 1]))
    problems = sorted(refusal(tmp_path).value)
    assert [Path(problem.partition(":")[0]).name for problem in problems] == [
        "cut.tar", "empty.tar", "notes.tar",
    ]  # fmt: skip


def test_unwritable_directory_is_refused(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0]))
    found = find_shards(str(tmp_path), None)
    manifests, _ = index_shards(found, CLS)
    with pytest.raises(DataError) as caught:
        write_manifests("/proc", found, manifests, force=True)
    assert caught.value.value == "/proc/train/manifest.json"


def test_hidden_files_are_no_shards(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0]))
    (tmp_path / "train/._a.tar").write_bytes(b"of another file system")
    assert [shard.name for shard in index(tmp_path)[0]["train"].shards] == ["a.tar"]


def test_invalid_labels_are_named_with_their_key(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([0, "cat", -1, 3]))
    first, second = refusal(tmp_path).value
    assert "a.tar: 0001: has the label b'cat'" in first
    assert "a.tar: 0002: has the label -1" in second


def test_labels_that_are_ids_or_mixed_are_refused(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([10**9, 7]))
    assert refusal(tmp_path).value == 10**9
    by_webdataset(tmp_path / "train/a.tar", labelled([1, "cat"], "json"))
    assert refusal(tmp_path, SampleRule(LabelRule(extension="json"))).value == "cat"


def test_classes_that_only_val_has_are_refused(numbered: Path) -> None:
    by_webdataset(numbered / "val/v.tar", labelled([1, 9, 7]))
    assert refusal(numbered).value == [7, 9]


def test_a_file_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\ufeff犬\r\ncat \r\n\r\n", "utf-8", newline="")
    assert read_class_names(file) == ("犬", "cat")
    for text, reason in (
        (b"a\nb\na\n", "'a'"),
        (b"\n", "no class"),
        (b"\xff", "UTF-8"),
        (b"a\n \nb\n", "line 2"),
    ):
        file.write_bytes(text)
        with pytest.raises(DataError, match=reason):
            read_class_names(file)
    with pytest.raises(DataError, match="No such file"):
        read_class_names(tmp_path / "none")


def test_names_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled(["10", "2", "1"], "txt"))
    by_webdataset(tmp_path / "val/a.tar", labelled(["2"], "txt"))
    assert index(tmp_path, TXT)[0]["train"].classes == ("1", "2", "10")


def test_images_of_no_known_kind(tmp_path: Path) -> None:
    raw = photo(0).tobytes()
    by_webdataset(
        tmp_path / "train/a.tar",
        {"x": {"npy": raw, "cls": b"0"}, "y": {"png": png(1), "cls": b"0"}},
    )
    assert "a.tar: x: " in refusal(tmp_path).problem
