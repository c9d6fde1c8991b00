"""A data set is written the same every time, plain tools read it, and it is whole or not there."""

import gc
import hashlib
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset
from foreign_shards import png
from image_folders import make

import data_sharding
from data_sharding.errors import DataError
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.format.shard_reader import ShardReader
from data_sharding.io import filesystem
from data_sharding.sources.base import Sample, Source
from data_sharding.sources.csv_file import csv_file
from data_sharding.sources.digits import digits
from data_sharding.sources.folder import FolderOptions, folder
from data_sharding.writing.dataset_writer import Dataset, write_dataset
from data_sharding.writing.journal import Journal
from data_sharding.writing.shard_writer import ImageChecks

SPLITS = ("train", "val")


def write(source: Source, url: object, seed: int = 0, samples_per_shard: int = 100) -> Dataset:
    return write_dataset(source, str(url), seed=seed, samples_per_shard=samples_per_shard)


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a directory; none where there is no directory."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def samples_of(source: Source, split: str) -> dict[str, tuple[bytes, int]]:
    samples = [source.splits[split][i] for i in range(len(source.splits[split]))]
    return {sample.key: (sample.read(), sample.label) for sample in samples}


def read_plainly(shards: list[Path]) -> list[dict[str, Any]]:
    """Return the samples that webdataset finds, which leaves its files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset([str(path) for path in shards], shardshuffle=False))
        gc.collect()
    return samples


@pytest.fixture(scope="module")
def source() -> Source:
    return digits()


@pytest.fixture(scope="module")
def written(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "dïgits set"
    write(source, path)
    return path


def test_equal_input_gives_equal_bytes(source: Source, written: Path, tmp_path: Path) -> None:
    write(digits(), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written)
    write(source, tmp_path / "other", seed=1)
    other = contents(tmp_path / "other")
    assert other["train/shard-000000.tar"] != contents(written)["train/shard-000000.tar"]


def test_the_manifest_describes_the_shards(source: Source, written: Path) -> None:
    listed = {"train/manifest.json", "val/manifest.json"}
    for split, num_shards in ("train", 15), ("val", 4):
        manifest = read_manifest(str(written), split)
        assert manifest.classes == tuple("0123456789")
        assert len(manifest.shards) == num_shards
        assert manifest.num_samples == len(source.splits[split])
        sizes = [shard.num_samples for shard in manifest.shards]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 100
        assert manifest.source["kind"] == "digits"
        for shard in manifest.shards:
            data = (written / split / shard.name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.num_bytes, shard.sha256)
            listed.add(f"{split}/{shard.name}")
    assert set(contents(written)) == listed


@pytest.mark.parametrize("split", ["train", "val"])
def test_three_readers_agree(source: Source, written: Path, tmp_path: Path, split: str) -> None:
    expected = samples_of(source, split)
    shards = [written / split / s.name for s in read_manifest(str(written), split).shards]

    by_webdataset = {s["__key__"]: (s["png"], int(s["cls"])) for s in read_plainly(shards)}

    by_tar = {}
    for shard in shards:
        subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
    for image in tmp_path.glob("*.png"):
        by_tar[image.stem] = (image.read_bytes(), int(image.with_suffix(".cls").read_text()))

    by_us = {}
    for shard in shards:
        with ShardReader(shard) as reader:
            for i in range(len(reader)):
                by_us[reader.key(i)] = (bytes(reader.image(i)), int(reader.label_bytes(i)))

    assert by_webdataset == by_tar == by_us == expected


def test_members_have_constant_metadata(written: Path) -> None:
    with tarfile.open(written / "val" / "shard-000000.tar") as tar:
        members = tar.getmembers()
    for member in members:
        assert member.type == tarfile.REGTYPE
        assert member.pax_headers == {}
        facts = (member.mtime, member.uname, member.gname, member.uid, member.gid, member.mode)
        assert facts == (0, "tahoe", "tahoe", 0, 0, 0o444)


def test_every_shard_is_a_fair_draw(written: Path) -> None:
    with ShardReader(written / "train" / "shard-000000.tar") as reader:
        assert {int(reader.label_bytes(i)) for i in range(len(reader))} == set(range(10))


def test_bytes_of_a_folder_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for name in "train/犬/ä 1.JPG", "train/犬/b.png", "train/cat/a.bmp", "val/cat/1.webp":
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 1000)
    source = folder(root)
    result = write(source, tmp_path / "set")
    assert result.manifests["train"].classes == ("cat", "犬")
    with tarfile.open(tmp_path / "set/train/shard-000000.tar") as tar:
        names = {member.name for member in tar}
    assert names == {
        "00000000-a.bmp", "00000000-a.cls", "00000001-b.cls", "00000001-b.png",
        "00000002-__1.cls", "00000002-__1.jpg",
    }  # fmt: skip
    with ShardReader(tmp_path / "set/train/shard-000000.tar") as reader:
        images = {
            reader.key(i): (bytes(reader.image(i)), int(reader.label_bytes(i))) for i in range(3)
        }
    assert images == samples_of(source, "train")


def test_object_store(source: Source, written: Path, tmp_path: Path) -> None:
    url = f"memory:/{tmp_path}/a set"
    assert not write(source, url).reused
    store = fsspec.filesystem("memory")
    for name, data in contents(written).items():
        assert store.cat_file(f"{tmp_path}/a set/{name}") == data
    assert not filesystem.exists(filesystem.join(url, "in_progress.json"))
    assert write(source, url).reused


def test_progress(source: Source, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_dataset(
        source,
        str(tmp_path),
        seed=0,
        samples_per_shard=1000,
        on_progress=lambda done, num: calls.append((done, num)),
    )
    assert calls == [(done, 1797) for done in range(1, 1798)]


def test_the_same_set_is_reused(source: Source, written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    result = write(source, written)
    assert result.reused
    assert result.manifests["val"] == read_manifest(str(written), "val")
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_another_set_is_refused(source: Source, written: Path) -> None:
    before = contents(written)
    with pytest.raises(DataError, match="samples_per_shard: 100 / 7") as caught:
        write(source, written, samples_per_shard=7)
    assert caught.value.value == str(written)
    with pytest.raises(DataError, match=r"val_fraction: 0\.2 / 0\.3"):
        write(digits(val_fraction=0.3), written)
    assert contents(written) == before


def test_foreign_shards_are_left_alone(source: Source, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"shard-000000\.tar") as caught:
        write(source, tmp_path)
    assert caught.value.value == str(tmp_path / "val")
    assert contents(tmp_path) == {"val/shard-000000.tar": b"precious"}


def test_a_shard_holds_at_least_one_sample(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write(source, tmp_path / "set", samples_per_shard=0)
    assert caught.value.value == 0
    assert contents(tmp_path) == {}


def test_a_url_that_cannot_be_written_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(DataError) as caught:
        write(source, tmp_path / "file")
    assert caught.value.value == str(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"kept"}
    with pytest.raises(DataError, match="Protocol not known: nope"):
        write(source, "nope://set")


def break_sample(source: Source, split: str, number: int, error: BaseException) -> Source:
    """Return a source one of whose samples raises when it is read."""

    def fail() -> bytes:
        raise error

    samples: list[Sample] = [source.splits[split][i] for i in range(len(source.splits[split]))]
    samples[number] = replace(samples[number], origin="/pets/one 犬.jpg", read=fail)
    return replace(source, splits={**source.splits, split: samples})


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unreadable_image_is_named_and_finished_shards_are_kept(
    tmp_path: Path, split: str, num_workers: int
) -> None:
    names = [
        f"{split}/{label}/{number}.png" for split in SPLITS for label in "ab" for number in "12"
    ]
    root = make(tmp_path / "pets", *names)
    source, bad = folder(root), root / split / "b" / "2.png"
    bad.unlink()
    with pytest.raises(DataError) as caught:
        write_dataset(
            source, str(tmp_path / "set"), seed=0, samples_per_shard=1, num_workers=num_workers
        )
    assert caught.value.value == str(bad)
    assert not [name for name in contents(tmp_path / "set") if "manifest" in name]
    make(root, f"{split}/b/2.png")
    write_dataset(source, str(tmp_path / "set"), seed=0, samples_per_shard=1)
    write_dataset(source, str(tmp_path / "undisturbed"), seed=0, samples_per_shard=1)
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def test_an_interrupt_keeps_finished_shards(source: Source, written: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(break_sample(source, "train", 5, KeyboardInterrupt()), tmp_path)
    kept = {p: p.stat() for p in tmp_path.glob("*/shard-*.tar")}
    records = {path.stem for path in tmp_path.glob("in_progress/*.json")}
    assert len(records) >= 4  # all of val
    seen: list[int] = []
    write_dataset(
        source, str(tmp_path), seed=0, samples_per_shard=100,
        on_progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert contents(tmp_path) == contents(written)
    assert seen[0] >= 359
    assert seen[-1] == 1797
    for path, before in kept.items():
        if f"{path.parent.name}-{path.stem[6:]}" in records:
            after = path.stat()
            assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_other_settings_start_from_scratch(source: Source, written: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(break_sample(source, "train", 5, KeyboardInterrupt()), tmp_path, samples_per_shard=50)
    write(source, tmp_path)
    assert contents(tmp_path) == contents(written)


def other_border(root: Path) -> tuple[Source, Source]:
    """Return two sources that list the same rows, of which one more is for training in the second.

    Their classes are the same, and so are the files, their order and their labels.
    """
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(8)]
    for number in range(8):
        (root / f"{number}.png").write_bytes(png(number))
    sources = []
    for num_train in 4, 6:
        for name, mine in ("train", rows[:num_train]), ("val", rows[num_train:]):
            (root / f"{name}.csv").write_text("\n".join(["path,label", *mine]))
        sources.append(csv_file(root / "train.csv", val_path=root / "val.csv"))
    return sources[0], sources[1]


def one_more_class(root: Path) -> tuple[Source, Source]:
    """Return two sources of the same files, whose labels an empty class shifts in the second."""
    for number in range(8):
        path = root / SPLITS[number % 2] / "bc"[number % 4 // 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    before = folder(root)
    (root / "train" / "a").mkdir()
    return before, folder(root, options=FolderOptions(allow_empty=True))


@pytest.mark.parametrize("make_sources", [other_border, one_more_class])
def test_other_labels_or_splits_of_the_same_files_are_another_set(
    make_sources: Callable[[Path], tuple[Source, Source]], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    before, after = make_sources(tmp_path / "images")
    assert before.fingerprint == after.fingerprint

    def write_checked(source: Source, name: str) -> Dataset:
        url = str(tmp_path / name)
        return write_dataset(source, url, seed=0, samples_per_shard=2, checks=ImageChecks())

    write_checked(before, "whole")
    assert write_checked(before, "whole").reused
    with pytest.raises(DataError, match="other classes or another validation split"):
        write_checked(after, "whole")
    with pytest.raises(KeyboardInterrupt):
        write_checked(break_sample(before, "train", 1, KeyboardInterrupt()), "killed")
    assert list((tmp_path / "killed/in_progress").glob("*.json"))
    write_checked(after, "killed")
    write_checked(after, "undisturbed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_records_of_another_set_are_ignored(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), {"seed": 1}, None)
    journal.add("train-000000", {"a": 1})
    assert journal.read() == {"train-000000": {"a": 1}}
    assert Journal(str(tmp_path), {"seed": 2}, None).read() == {}


def test_a_damaged_finished_shard_is_written_again(
    source: Source, written: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(break_sample(source, "train", 5, KeyboardInterrupt()), tmp_path)
    (tmp_path / "val" / "shard-000001.tar").write_bytes(b"cut")
    (tmp_path / "val" / "shard-000002.tar").unlink()
    (tmp_path / "in_progress" / "val-000003.json").write_bytes(b"{")
    write(source, tmp_path)
    assert contents(tmp_path) == contents(written)


def test_processes_do_not_change_a_byte(source: Source, written: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    write_dataset(
        source, str(tmp_path), seed=0, samples_per_shard=100, num_workers=3,
        on_progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert contents(tmp_path) == contents(written)
    assert seen == sorted(seen)
    assert seen[-1] == 1797


@pytest.mark.parametrize("shard_bytes", [1, 5000, 20_000, 10**9])
def test_shards_of_a_size_in_bytes(tmp_path: Path, shard_bytes: int) -> None:
    root = tmp_path / "images"
    for number in range(40):
        split = "val" if number % 4 == 0 else "train"
        path = root / split / "ab"[number // 4 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100 * number + 1))
    source = folder(root)
    result = write_dataset(source, str(tmp_path / "set"), seed=0, shard_bytes=shard_bytes)
    for split in SPLITS:
        sizes = []
        for shard in result.manifests[split].shards:
            with ShardReader(tmp_path / "set" / split / shard.name) as reader:
                sizes.append([len(reader.image(i)) for i in range(len(reader))])
        assert sorted(chain(*sizes)) == sorted(source.num_bytes[split])
        assert all(sum(shard) <= shard_bytes or len(shard) == 1 for shard in sizes)
        for shard, after in pairwise(sizes):  # no more would have fitted
            assert sum(shard) + after[0] > shard_bytes


def test_two_writers_at_once(
    source: Source, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_sharding.writing.journal._LOCK_TIMEOUT_S", 0.1)
    with started(tmp_path / "ä set", 800) as process:
        with pytest.raises(DataError, match="another process"):
            write(source, tmp_path / "ä set")
        with pytest.raises(DataError, match="no data set at"):  # before all of it is there
            read_manifest(str(tmp_path / "ä set"), "train")
        assert process.stdin is not None
        process.stdin.close()  # and it goes on
        assert process.wait(timeout=60) == 0
    assert contents(tmp_path / "ä set") == contents(written)


def test_a_full_disk_publishes_nothing(
    source: Source, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data_sharding.writing.dataset_writer

    def fail(url: str, split: str, manifest: Manifest) -> None:
        if split == "train":
            names = [name for name in contents(tmp_path) if not name.startswith("in_progress")]
            assert len(names) == 15 + 4 + 1  # all but this: it must be the last
            raise OSError(28, "No space left on device")
        write_manifest(url, split, manifest)

    write_manifest: Callable[..., Any] = data_sharding.writing.dataset_writer.write_manifest
    with monkeypatch.context() as patch:
        patch.setattr(data_sharding.writing.dataset_writer, "write_manifest", fail)
        with pytest.raises(DataError, match="No space left on device"):
            write(source, tmp_path)
    write(source, tmp_path)
    assert contents(tmp_path) == contents(written)


STARTED = """
import sys
from data_sharding.sources.digits import digits
from data_sharding.writing.dataset_writer import write_dataset

def wait(done, num):
    if done == int(sys.argv[2]):
        print(flush=True)
        sys.stdin.read()

write_dataset(digits(), sys.argv[1], seed=0, samples_per_shard=100, on_progress=wait)
"""


@contextmanager
def started(url: Path, num_written: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Write the digits in another process, which waits when it has written so many."""
    arguments = [sys.executable, "-c", STARTED, url, str(num_written)]
    home = Path(data_sharding.__file__).parent.parent
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(arguments, cwd=home, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == b"\n"
            yield process
        finally:
            process.kill()
