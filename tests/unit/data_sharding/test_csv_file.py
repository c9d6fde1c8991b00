"""A CSV file is read as documented, and rows that cannot be used are named by their lines."""

import csv
import json
import re
import tarfile
import unicodedata
from pathlib import Path

import pytest
from foreign_shards import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from data_sharding.errors import DataError
from data_sharding.format.labels import LabelRule
from data_sharding.sources.base import Source
from data_sharding.sources.csv_file import Columns, csv_file
from data_sharding.writing.dataset_writer import write_dataset

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


def everything(path: Path, columns: Columns = SINGLE) -> list[tuple[str, str]]:
    """Return the images of both splits in the order of the file, and the names of their classes."""
    source = csv_file(path, columns, val_fraction=0.5)
    samples = [source.splits[s][i] for s in source.splits for i in range(len(source.splits[s]))]
    in_order = sorted(samples, key=lambda sample: sample.key)
    return [(source.name(sample), source.classes[sample.label]) for sample in in_order]  # type: ignore[index]


def error_of(path: Path, columns: Columns = SINGLE, **settings: object) -> DataError:
    """Return the error of a file that cannot be used."""
    with pytest.raises(DataError) as caught:
        csv_file(path, columns, **(settings or {"val_fraction": 0.5}))  # type: ignore[arg-type]
    return caught.value


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


def test_the_seed_chooses_a_fraction_of_each_class(tmp_path: Path) -> None:
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
    manifest = dataset.manifests["train"]
    assert manifest.labels == LabelRule(kind="multi", extension="json")
    assert manifest.samples_per_class == (1, 1)
    with tarfile.open(tmp_path / "set/train/shard-000000.tar") as tar:
        assert tar.getnames() == ["00000000-1.jpg", "00000000-1.json"]
        member = tar.extractfile("00000000-1.json")
        assert member is not None
        assert json.load(member) == [0, 1]


def test_of_several_labels_an_image_may_have_none(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    rows = table(tmp_path / "x.csv", "1.jpg,a|b", '2.jpg," "', "3.jpg,")
    source = csv_file(rows, MULTI, val_fraction=0.34)
    both = [*listed(source, "train"), *listed(source, "val")]
    assert sorted(both) == [("1.jpg", (0, 1)), ("2.jpg", ()), ("3.jpg", ())]
    assert source.notes == ("2 images without a label, which show none of the classes",)
    unlabelled = table(tmp_path / "y.csv", "1.jpg,", "2.jpg,")
    assert "no label in any row" in error_of(unlabelled, MULTI).problem


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
    assert error_of(path, NO_LABELS, val_fraction=0.1).value == 0.1


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg", "dir/3.jpg")
    path = table(
        tmp_path / "x.csv",
        "1.jpg,a", "gone.jpg,a", '"2.jpg","two\nlines"', "./1.jpg,a", "2.jpg,b", ",a",
        "dir/3.jpg, ", "dir,a", "1.jpg", "x\0y,a", "1.jpg,crane, bird",
    )  # fmt: skip
    error = error_of(path)
    assert error.value == str(path)
    assert error.problem.startswith("9 rows ")
    for reason in (
        f"line 3: no file at {tmp_path}/gone.jpg",
        "line 6: ./1.jpg is listed already, in x.csv line 2",
        "line 7: 2.jpg is listed already, in x.csv line 5",
        "line 8: it has no path",
        "line 9: it has an empty label",
        f"line 10: no file at {tmp_path}/dir",
        "line 11: it has 1 cell, and the header 2",
        "line 12: ",
        "line 13: it has 3 cells, and the header 2",
    ):
        assert reason in error.problem
    assert "line 2: it has an empty label" in error_of(table(path, "1.jpg,a||b"), MULTI).problem
    many = table(path, *(f"{number}-gone.jpg,a" for number in range(100)))
    assert "and 80 more" in error_of(many).problem


def test_an_image_cannot_be_in_both_files(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    train, val = (table(tmp_path / name, "1.jpg,a") for name in ("x.csv", "y.csv"))
    assert "line 2: 1.jpg is listed already, in x.csv line 2" in str(error_of(train, val_path=val))


def test_classes_without_training_images_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    train, val = table(tmp_path / "x.csv", "1.jpg,a"), table(tmp_path / "y.csv", "2.jpg,b")
    assert "line 2: b" in error_of(train, val_path=val).problem


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg")
    assert error_of(tmp_path / "none.csv").value == str(tmp_path / "none.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(b"path,label\ncaf\xe9.jpg,a\n")
    assert "UTF-8" in error_of(path).problem
    assert error_of(table(path)).value == str(path)
    error = error_of(table(path, "1.jpg,a", header="file,label"))
    assert "'path' and needs one (it has 'file', 'label')" in error.problem
    assert "'label'" in error_of(table(path, "1.jpg", header="path")).problem


def test_validation_images_are_given_or_chosen(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "1.jpg,a", "2.jpg,a")
    neither = error_of(path, val_fraction=None)
    both = error_of(path, val_path=path, val_fraction=0.1)
    assert (neither.value, both.value) == (None, 0.1)
    assert "`val_fraction`" in neither.hint


def test_the_fingerprint_depends_on_labels_and_not_on_the_directory(tmp_path: Path) -> None:
    facts = []
    for place, label in (("here", "a"), ("there", "a"), ("there", "b")):
        make(tmp_path / place, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
        rows = [f"{n}.jpg,{'x' if n > 2 else label}" for n in range(1, 5)]
        facts.append(
            csv_file(table(tmp_path / place / "x.csv", *rows), val_fraction=0.5).fingerprint
        )
    assert facts[0] == facts[1] != facts[2]


def test_an_image_changed_at_equal_size_changes_the_digest_of_times(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "1.jpg,a", "2.jpg,a")
    before = csv_file(path, val_fraction=0.5)
    assert csv_file(path, val_fraction=0.5).times_sha256 == before.times_sha256
    (tmp_path / "1.jpg").write_bytes(jpeg(0)[::-1])
    after = csv_file(path, val_fraction=0.5)
    assert after.fingerprint == before.fingerprint
    assert after.times_sha256 != before.times_sha256


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected(tmp_path: Path, delimiter: str) -> None:
    names = [f"{start} {n}.jpg" for start in ("a,", "b;|") for n in (1, 2)]
    make(tmp_path, *names)
    rows = [
        delimiter.join((f'"{name}"', label))
        for name, label in zip(
            names, ["cat", " cat", '"crane, bird"', ' "crane, bird"'], strict=True
        )
    ]
    path = table(tmp_path / "x.csv", *rows, header=delimiter.join((" Path ", "LABEL")))
    found = everything(path)
    assert found == [(name, "cat" if name[0] == "a" else "crane, bird") for name in names]
    assert everything(path, Columns(delimiter=delimiter)) == found
    other = "#" if delimiter == "|" else "|"
    assert "'path'" in error_of(path, Columns(delimiter=other)).problem


def test_a_separator_of_labels_is_not_taken_for_one_of_cells(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "1.jpg,a;b", "2.jpg,c;a", header="path,label")
    source = csv_file(path, Columns(separator=";"), val_fraction=0.5)
    assert source.classes == ("a", "b", "c")


def test_exact_headers_come_before_near_ones(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "1.jpg,a,x", "2.jpg,a,y", header="path,label,Label")
    assert everything(path) == [("1.jpg", "a"), ("2.jpg", "a")]
    table(path, "1.jpg,a,x", "2.jpg,a,y", header="path,LABEL,Label")
    assert "2 columns called 'label'" in error_of(path).problem


def test_a_missing_header_is_named(tmp_path: Path) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    path = table(tmp_path / "x.csv", "2.jpg;b", header="1.jpg;a")
    assert "'path;label'" in error_of(path, Columns(delimiter=";")).hint
    assert "1.jpg;a" in error_of(path).problem
    assert "`path_column`" in error_of(table(path, "2.jpg,b", header="file,kind")).hint


@pytest.mark.parametrize(
    "spelling", ["./1.jpg", "../{}/1.jpg", "{home}/1.jpg", "link.jpg", "l/1.jpg"]
)
def test_one_image_is_listed_once_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    make(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "link.jpg").symlink_to("1.jpg")
    (tmp_path / "l").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    again = spelling.format(tmp_path.name, home=tmp_path)
    path = table(Path("x.csv"), "1.jpg,cat", "2.jpg,dog", f"{again},dog")
    assert f"line 4: {again} is listed already, in x.csv line 2" in error_of(path).problem
    val = table(Path("val.csv"), f"{again},dog")
    table(path, "1.jpg,cat", "2.jpg,dog")
    assert f"line 2: {again} is listed already" in error_of(path, val_path=val).problem


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_forms_of_unicode_are_one(tmp_path: Path, on_disk: str, in_file: str) -> None:
    names = [unicodedata.normalize(on_disk, f"Übung/{n}ö.jpg") for n in (1, 2)]
    make(tmp_path, *names)
    rows = [unicodedata.normalize(in_file, f"Übung/{n}ö.jpg,Größe") for n in (1, 2)]
    path = table(tmp_path / "x.csv", *rows)
    label = unicodedata.normalize("NFC", "Größe")
    assert everything(path) == [(name, label) for name in names]


@pytest.fixture(scope="module")
def ten_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("ten"), *(f"{number}.jpg" for number in range(10)))


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 7), st.text('ab,; "é', max_size=6), st.booleans()), max_size=9
    ),
    delimiter=st.sampled_from((",", ";", "\t")),
)
@settings(max_examples=100)
def test_each_row_is_a_sample_or_in_the_error(
    ten_images: Path, rows: list[tuple[int, str, bool]], delimiter: str
) -> None:
    path = ten_images / "x.csv"
    rows = [(8, "twin", False), (9, "twin", False), *rows]  # so that some can be for validation
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(("path", "label"))
        writer.writerows((f"{n}.jpg", label, *["x"] * long) for n, label, long in rows)
    bad, good = [], dict[str, str]()
    for line, (number, label, is_long) in enumerate(rows, start=2):
        if is_long or not label.strip() or f"{number}.jpg" in good:
            bad.append(line)
        else:
            good[f"{number}.jpg"] = label.strip()
    if bad:
        assert [
            int(line) for line in re.findall(r"(?:: |; )line (\d+): ", error_of(path).problem)
        ] == bad
    else:
        assert everything(path) == [(f"{n}.jpg", good[f"{n}.jpg"]) for n, _, _ in rows]
