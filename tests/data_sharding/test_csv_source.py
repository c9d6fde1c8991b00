"""A CSV file is read as documented, and rows that cannot be used are named by their lines."""

import json
import tarfile
from pathlib import Path

import pytest
from foreign import jpeg

from data_sharding.csv_source import Columns, csv_file
from data_sharding.labels import LabelRule
from data_sharding.manifest import DataError
from data_sharding.sources import Source
from data_sharding.write import write_dataset

SINGLE = Columns()
NO_LABELS = Columns(label=None)
MULTI = Columns(separator="|")


def make(root: Path, *names: str) -> Path:
    """Write images that differ by their place in the list."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(number))
    return root


def table(path: Path, *rows: str, header: str = "path,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((header, *rows, "")), "utf-8")
    return path


def listed(source: Source, split: str) -> list[tuple[str, object]]:
    samples = source.splits[split]
    found = [samples[i] for i in range(len(samples))]
    return [(source.name(sample), sample.label) for sample in found]


def refusal(path: Path, columns: Columns = SINGLE, **settings: object) -> str:
    with pytest.raises(DataError) as caught:
        csv_file(path, columns, **(settings or {"val_fraction": 0.5}))  # type: ignore[arg-type]
    assert "othing was written" in str(caught.value)
    return str(caught.value)


def test_two_files(tmp_path: Path) -> None:
    make(tmp_path, "ä/1.jpg", "ä/b 2.PNG", "犬.jpg", "v.jpg")
    train = table(tmp_path / "train.csv", "ä/1.jpg,犬", '"ä/b 2.PNG","cat, small"', "犬.jpg,犬")
    val = table(tmp_path / "val.csv", "v.jpg, 犬 ")
    source = csv_file(train, val_path=val)
    assert source.classes == ("cat, small", "犬")
    assert source.labels == LabelRule()
    assert listed(source, "train") == [("ä/1.jpg", 1), ("ä/b 2.PNG", 0), ("犬.jpg", 1)]
    assert listed(source, "val") == [("v.jpg", 1)]
    assert [source.splits["train"][i].key for i in range(3)] == [
        "00000000-1", "00000001-b_2", "00000002-_",
    ]  # fmt: skip
    assert source.splits["val"][0].read() == jpeg(3)
    assert source.num_bytes["val"].tolist() == [len(jpeg(3))]


def test_other_headers_another_root_and_a_byte_order_mark(tmp_path: Path) -> None:
    make(tmp_path / "images", "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "3,1.jpg,a", "4,2.jpg,a", header="\ufeffid,file,kind")
    columns = Columns("file", "kind")
    source = csv_file(path, columns, root=tmp_path / "images", val_fraction=0.5)
    assert sorted(listed(source, "train") + listed(source, "val")) == [("1.jpg", 0), ("2.jpg", 0)]
    absolute = table(tmp_path / "y.csv", f"{tmp_path}/images/1.jpg,a", "images/2.jpg,a")
    assert len(csv_file(absolute, val_fraction=0.5).splits["train"]) == 1


def test_numbers_keep_their_order(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(22)]
    make(tmp_path, *names)
    rows = [f"{name},{i // 2}" for i, name in enumerate(names)]
    assert csv_file(table(tmp_path / "x.csv", *rows), val_fraction=0.5).classes == tuple(
        str(number) for number in range(11)
    )
    rows[0] = "0.jpg,00"
    rows[1] = "1.jpg,00"
    path = table(tmp_path / "y.csv", *rows)
    assert csv_file(path, val_fraction=0.5).classes[:4] == ("00", "1", "10", "2")


def test_a_fraction_of_each_class_by_the_seed(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(30)]
    make(tmp_path, *names)
    path = table(tmp_path / "x.csv", *(f"{n},{'ab'[i % 3 == 0]}" for i, n in enumerate(names)))
    source = csv_file(path, val_fraction=0.2, seed=1)
    labels = [label for _, label in listed(source, "val")]
    assert (labels.count(0), labels.count(1)) == (4, 2)
    assert sorted(listed(source, "train") + listed(source, "val")) == sorted(
        (name, int(i % 3 == 0)) for i, name in enumerate(names)
    )
    assert listed(csv_file(path, val_fraction=0.2, seed=1), "val") == listed(source, "val")
    assert listed(csv_file(path, val_fraction=0.2, seed=2), "val") != listed(source, "val")


def test_several_labels_are_stored_as_json(tmp_path: Path) -> None:
    make(tmp_path / "in", "1.jpg", "2.jpg")
    train = table(tmp_path / "in/x.csv", "1.jpg,dog|cat | dog")
    val = table(tmp_path / "in/y.csv", "2.jpg,cat")
    source = csv_file(train, MULTI, val_path=val)
    assert listed(source, "train") == [("1.jpg", (0, 1))]
    dataset = write_dataset(source, str(tmp_path / "set"), seed=0, samples_per_shard=1)
    assert dataset.manifests["train"].labels == LabelRule(kind="multi", extension="json")
    with tarfile.open(tmp_path / "set/train/shard-000000.tar") as tar:
        assert tar.getnames() == ["00000000-1.jpg", "00000000-1.json"]
        member = tar.extractfile("00000000-1.json")
        assert member is not None
        assert json.load(member) == [0, 1]


def test_no_labels(tmp_path: Path) -> None:
    make(tmp_path / "in", "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    path = table(tmp_path / "in/x.csv", "1.jpg", "2.jpg", "3.jpg", "4.jpg", header="path")
    source = csv_file(path, NO_LABELS, val_fraction=0.25)
    assert source.classes == ()
    dataset = write_dataset(source, str(tmp_path / "set"), seed=0, samples_per_shard=9)
    assert dataset.manifests["val"].labels == LabelRule(kind="none")
    with tarfile.open(tmp_path / "set/train/shard-000000.tar") as tar:
        assert [name.rpartition(".")[2] for name in tar.getnames()] == ["jpg"] * 3
    assert len(csv_file(path, NO_LABELS, val_fraction=0.1).splits["val"]) == 1
    table(path, "1.jpg", header="path")
    assert "there is 1 image" in refusal(path, NO_LABELS, val_fraction=0.1)


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "dir/3.jpg")
    path = table(
        tmp_path / "x.csv",
        "1.jpg,a", "gone.jpg,a", '"2.jpg","two\nlines"', "./1.jpg,a", "2.jpg,b", ",a",
        "dir/3.jpg, ", "dir,a", "1.jpg", "x\0y,a",
    )  # fmt: skip
    message = refusal(path)
    assert f"8 rows of {path} cannot be used" in message
    for reason in (
        f"line 3: no file at {tmp_path}/gone.jpg",
        "line 6: ./1.jpg is listed already, in x.csv line 2",
        "line 7: 2.jpg is listed already, in x.csv line 5",
        "line 8: it has no path",
        "line 9: it has an empty label",
        f"line 10: no file at {tmp_path}/dir",
        "line 11: it has an empty label",
        "line 12: ",
    ):
        assert reason in message
    assert "line 2: it has an empty label" in refusal(table(path, "1.jpg,a||b"), MULTI)
    many = table(path, *(f"{number}-gone.jpg,a" for number in range(100)))
    assert "and 80 more" in refusal(many)


def test_an_image_cannot_be_in_both_files(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    train, val = (table(tmp_path / name, "1.jpg,a") for name in ("x.csv", "y.csv"))
    assert "line 2: 1.jpg is listed already, in x.csv line 2" in refusal(train, val_path=val)


def test_classes_that_cannot_be_learned(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    train, val = table(tmp_path / "x.csv", "1.jpg,a"), table(tmp_path / "y.csv", "2.jpg,b")
    assert "classes that no training image has: line 2: b" in refusal(train, val_path=val)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    assert "cannot read" in refusal(tmp_path / "none.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(b"path,label\ncaf\xe9.jpg,a\n")
    assert "no CSV file in UTF-8" in refusal(path)
    assert "lists no images" in refusal(table(path))
    message = refusal(table(path, "1.jpg,a", header="file,label"))
    assert "0 columns called 'path' and needs one (it has 'file', 'label')" in message
    assert "0 columns called 'label'" in refusal(table(path, "1.jpg", header="path"))


def test_something_must_say_what_is_for_validation(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "1.jpg,a", "2.jpg,a")
    assert "nothing says which images" in refusal(path, val_fraction=None)
    assert "a file and a fraction both say" in refusal(path, val_path=path, val_fraction=0.1)


def test_facts_know_the_labels_and_not_the_place(tmp_path: Path) -> None:
    facts = []
    for place, label in (("here", "a"), ("there", "a"), ("there", "b")):
        make(tmp_path / place, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
        rows = [f"{n}.jpg,{'x' if n > 2 else label}" for n in range(1, 5)]
        facts.append(csv_file(table(tmp_path / place / "x.csv", *rows), val_fraction=0.5).facts)
    assert facts[0] == facts[1] != facts[2]
