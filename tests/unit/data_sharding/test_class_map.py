"""A part of the classes: the map in its file, the manifest, and the samples that readers keep."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_shards import by_webdataset, jpeg, labelled
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan

from data_sharding.errors import DataError, ShardError
from data_sharding.format.class_map import ClassMap, read_class_map
from data_sharding.format.labels import LabelRule
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.format.sample_rule import SampleRule
from data_sharding.format.shard_reader import ShardReader
from data_sharding.sampling.sample_order import SampleOrder
from data_sharding.scanning.scan import ReadOptions
from data_sharding.sources.shards import from_webdataset, resplit
from data_sharding.tools.find_shards import FoundShards, find_shards
from data_sharding.tools.index import index_shards, write_manifests
from data_sharding.tools.verify import verify

CLS = SampleRule()


def class_map(tmp_path: Path, text: str, name: str = "map.txt") -> ClassMap:
    (tmp_path / name).write_text(text)
    return read_class_map(str(tmp_path / name))


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("name", "text", "names", "labels"),
    [
        ("a.txt", "cat\n3\n", ("cat", "owl"), ((1,), (3,))),
        ("a.csv", "old,new\ndog,1\ncat,0\nowl,-1\n", ("0", "1"), ((1,), (2,))),
        ("a.csv", "dog,pet\r\ncat,pet\r\n3,bird\r\n", ("pet", "bird"), ((2, 1), (3,))),
        ("a.tsv", 'cat\tmew\n"ant"\tbug\n', ("mew", "bug"), ((1,), (0,))),
        ("a.json", '{"2": 2, "cat": 0}', ("0", "1", "2"), ((1,), (), (2,))),
        ("a.csv", "-1,0\n0,1\n", ("0", "1"), ((-1,), (0,))),
    ],
)
def test_a_file_says_what_the_labels_become(
    tmp_path: Path, name: str, text: str, names: tuple[str, ...], labels: tuple[tuple[int, ...]]
) -> None:
    found = class_map(tmp_path, text, name)
    assert found.resolve(["ant", "cat", "dog", "owl"], [0, 1, -1]) == (names, labels)
    assert found.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_labels_that_are_names_are_chosen_by_name(tmp_path: Path) -> None:
    found = class_map(tmp_path, "owl\n7\n")
    assert found.resolve(None, ["owl", "7", "ant"]) == (("owl", "7"), (("owl",), ("7",)))
    assert found.resolve(["7", "owl"], ["owl", 0]) == (("owl", "7"), ((1, "owl"), (0, "7")))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("a.txt", "cat\ncat\n", "cat"),
        ("a.txt", "cat\n1\n", 1),
        ("a.txt", "cat\nelk\n", "elk"),
        ("a.txt", "4\n", "4"),
        ("a.csv", "cat,0,1\n", None),
        ("a.csv", "cat,0\ncat,1\n", None),
        ("a.csv", "cat,0\ndog,pet\n", None),
        ("a.csv", "cat,-1\n", None),
        ("a.csv", f"cat,{1 << 30}\n", None),
        ("a.txt", "", None),
        ("a.txt", "cat\n\ndog\n", None),
        ("a.json", "[1, 2]", None),
        ("a.json", "{", None),
        ("a.json", '{"0": 0, "0": 1, "1": 1}', None),
        ("a.json", '[{"0": 0}]', None),
        ("a.json", '{"0": ["n01440764", "tench"]}', None),
    ],
)
def test_impossible_maps(tmp_path: Path, name: str, text: str, value: object) -> None:
    with pytest.raises(DataError) as caught:
        class_map(tmp_path, text, name).resolve(["ant", "cat", "dog", "owl"], [0, 1])
    assert caught.value.value == (value or str(tmp_path / name))


def test_a_missing_file_and_names_that_nobody_gave(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class map"):
        read_class_map(str(tmp_path / "none.txt"))
    with pytest.raises(DataError) as caught:
        class_map(tmp_path, "cat\n").resolve(None, [0, 1])
    assert caught.value.value == "cat"


def test_a_name_that_no_sample_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        class_map(tmp_path, "owl\nanr\n").resolve(None, ["owl", "ant"])
    assert caught.value.value == "anr"
    with pytest.raises(DataError) as caught:
        class_map(tmp_path, "owl\n1\n").resolve(None, ["owl", "ant"])
    assert caught.value.value == "1"


def test_new_classes_without_samples_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(tmp_path / "train/0.tar", [0, 1, 2], 0)
    assert index(tmp_path, class_map(tmp_path, "0,1\n1,3\n", "a.csv")).num_samples == 2
    assert "2 classes of the class map without samples: 0, 2" in caplog.text


# ---------------------------------------------------------------- the shards


def pack(path: Path, labels: Sequence[object], first: int) -> None:
    """Write a tar whose images are the numbers of the samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels, first):
            for extension, data in (("jpg", str(i)), ("cls", str(label))):
                member = tarfile.TarInfo(f"{i}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data.encode()))


def index(root: Path, chosen: ClassMap, classes: Sequence[str] | None = None) -> Manifest:
    found = FoundShards(f"{root}/train", tuple(sorted(p.name for p in root.glob("train/*.tar"))))
    manifests, _ = index_shards({"train": found}, CLS, classes=classes, class_map=chosen)
    write_manifests(str(root), {"train": found}, manifests, force=True)
    return read_manifest(str(root), "train")


def samples(root: Path, manifest: Manifest) -> list[tuple[int, int]]:
    """Return the number and the class of each sample."""
    found = []
    for shard in manifest.shards:
        with ShardReader(root / "train" / shard.name, shard, manifest.rule) as reader:
            for i in range(len(reader)):
                (label,) = manifest.parse_labels(reader.label_bytes(i))
                found.append((int(reader.image(i)), label))
    return found


_SHARDS = st.lists(st.lists(st.integers(-1, 6), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=8, deadline=None)
@given(_SHARDS, st.dictionaries(st.integers(-1, 6), st.integers(0, 3), min_size=1), st.data())
def test_each_kept_sample_comes_once_in_the_same_batches_on_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    shards: list[list[int]],
    mapping: dict[int, int],
    data: st.DataObject,
) -> None:
    root = tmp_path_factory.mktemp("set")
    numbers = np.cumsum([0, *map(len, shards)]).tolist()
    for n, (labels, first) in enumerate(zip(shards, numbers, strict=False)):
        pack(root / f"train/{n}.tar", labels, first)
    kept = [
        (number, mapping[label])
        for labels, first in zip(shards, numbers, strict=False)
        for number, label in enumerate(labels, first)
        if label in mapping
    ]
    chosen = class_map(root, json.dumps(mapping), "map.json")
    if not kept:
        with pytest.raises(DataError, match="no sample"):
            index(root, chosen)
        return
    manifest = index(root, chosen)
    found = samples(root, manifest)
    assert found == kept
    assert manifest.num_samples == len(kept)
    step_size = data.draw(st.sampled_from([1, 2, 4]))
    if len(kept) < step_size:
        return
    order = SampleOrder(manifest.shards.num_samples, 5, step_size, step_size, step_size)
    steps = range(order.steps_per_epoch)
    drawn = [order.global_batch(step).ids.tolist() for step in steps]
    for ranks in (r for r in (1, 2, 4) if step_size % r == 0):
        each = plan(num_lanes=step_size, num_micro_batches=step_size, world_size=ranks)
        for step in steps:
            batch = [
                sample
                for rank in range(ranks)
                for micro in each.micro_batches_of(rank)
                for sample in order.micro_batch(step, micro).ids.tolist()
            ]
            assert batch == drawn[step]
    every = Counter(found[i] for ids in drawn for i in ids)
    assert every.total() == len(kept) - len(kept) % step_size
    assert not every or max(every.values()) == 1


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    pack(tmp_path / "train/a.tar", [3, -1, 0, 3, 5], 0)
    pack(tmp_path / "train/b.tar", [0, 0, -1], 5)
    pack(tmp_path / "train/c.tar", [5, 3], 8)
    return tmp_path


def test_the_manifest_has_the_choice_and_the_counts(
    numbered: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = index(numbered, class_map(numbered, "5\n3\n"))
    assert manifest.classes == ("5", "3")
    assert [(shard.name, shard.num_samples) for shard in manifest.shards] == [
        ("a.tar", 3),
        ("c.tar", 2),
    ]
    assert manifest.class_labels == ((5,), (3,))
    assert "5 samples of 2 labels outside the class map (0: 3, -1: 2)" in caplog.text
    assert "1 shard without" in caplog.text
    (numbered / "map.txt").unlink()  # nobody needs it any more
    assert samples(numbered, manifest) == [(0, 1), (3, 1), (4, 0), (8, 0), (9, 1)]
    report = verify(str(numbered), decode=False)
    assert not report.problems
    assert any("sample of another class: 2" in remark for _, remark in report.remarks)


def test_another_choice_is_other_data(numbered: Path) -> None:
    maps = ["5\n3\n", "3\n5\n", "3\n"]
    manifests = [index(numbered, class_map(numbered, text)) for text in maps]
    assert len({manifest.fingerprint for manifest in manifests}) == 3
    first = manifests[0]
    plain = replace(first, class_labels=None)
    assert plain.fingerprint != first.fingerprint
    with pytest.raises(ShardError, match="5 samples and its manifest says 3"):
        ShardReader(numbered / "train/a.tar", first.shards[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [(((5,),), "has 1 classes"), (((5,), (5,)), "the label 5 twice")],
)
def test_impossible_choices_in_a_manifest(
    numbered: Path, labels: tuple[tuple[int, ...], ...], message: str
) -> None:
    manifest = index(numbered, class_map(numbered, "5\n3\n"))
    with pytest.raises(ValueError, match=message):
        replace(manifest, class_labels=labels)


def test_images_without_labels_have_no_classes_to_choose(numbered: Path) -> None:
    found = FoundShards(f"{numbered}/train", ("a.tar",))
    chosen = class_map(numbered, "5\n")
    with pytest.raises(DataError, match="no labels"):
        index_shards({"train": found}, SampleRule(LabelRule("none")), class_map=chosen)


def test_several_labels_lose_those_that_are_not_chosen(tmp_path: Path) -> None:
    lists: Mapping[str, object] = labelled([[0, 2], [], [1], [2, 1]], "json")
    by_webdataset(tmp_path / "train/a.tar", lists)  # type: ignore[arg-type]
    found = find_shards(str(tmp_path), "train")
    rule = SampleRule(LabelRule("multi", "json"))
    manifest = index_shards(found, rule, class_map=class_map(tmp_path, "2\n0\n"))[0]["train"]
    with ShardReader(tmp_path / "train/a.tar", manifest.shards[0], manifest.rule) as reader:
        kept = [manifest.parse_labels(reader.label_bytes(i)) for i in range(len(reader))]
    assert kept == [(1, 0), (), (0,)]


# Keys and new labels of the kept samples of labels 3, -1, 0, 3, 5, 0, 3, 5.
KEPT = [("0000", 1), ("0003", 1), ("0004", 0), ("0006", 1), ("0007", 0)]


def test_a_part_of_the_classes_is_written_anew(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "set/a.tar", labelled([3, -1, 0, 3, 5, 0, 3, 5]))
    source = from_webdataset(
        [f"{tmp_path}/set"],
        CLS,
        ReadOptions(tmp_path),
        val_fraction=0.4,
        class_map=class_map(tmp_path, "5\n3\n"),
    )
    assert source.classes == ("5", "3")
    found = [split[i] for split in source.splits.values() for i in range(len(split))]
    assert sorted((sample.key[9:], sample.label) for sample in found) == KEPT
    assert all(sample.read() == jpeg(int(sample.key[9:])) for sample in found)


def test_a_part_of_the_classes_is_split_anew(tmp_path: Path) -> None:
    by_webdataset(tmp_path / "train/a.tar", labelled([3, -1, 0, 3, 5, 0, 3, 5]))
    index(tmp_path, class_map(tmp_path, "5\n3\n"))
    source = resplit(str(tmp_path), "train", ReadOptions(tmp_path), val_fraction=0.4)
    assert source.classes == ("5", "3")
    found = [split[i] for split in source.splits.values() for i in range(len(split))]
    assert sorted((sample.key[9:], sample.label) for sample in found) == KEPT


def test_a_choice_does_not_replace_the_manifest_of_all(numbered: Path) -> None:
    found = FoundShards(f"{numbered}/train", ("a.tar", "c.tar"))
    names = class_map(numbered, "".join(f"{label}\n" for label in (0, 3, 5, -1)))
    every = index_shards({"train": found}, CLS, class_map=names)[0]
    write_manifests(str(numbered), {"train": found}, every, force=False)
    part = index_shards({"train": found}, CLS, class_map=class_map(numbered, "3\n"))[0]
    with pytest.raises(DataError) as caught:
        write_manifests(str(numbered), {"train": found}, part, force=False)
    assert "`data`" in caught.value.hint
    assert read_manifest(str(numbered), "train").num_samples == 7
