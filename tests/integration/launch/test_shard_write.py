"""`tahoe shard folder|csv|digits` as a user runs it."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
from cli_runner import Tahoe
from foreign_shards import bomb, contents, encoded, jpeg, photo, png
from s3_server import S3

from data_sharding.format.manifest import read_manifest

DEADLINE_S = 60


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Return a directory of images with one of each fault, and a CSV file that lists them."""
    root, rows = tmp_path / "my pets", ["file,kinds"]
    for number in range(40):
        path = root / ("val" if number % 4 == 0 else "train") / "ab"[number // 4 % 2]
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{number}.jpg").write_bytes(encoded(photo(number, (120, 80))))
        rows.append(f"{path.relative_to(root)}/{number}.jpg,{'a;犬' if number % 3 else 'b'}")
    (root / "train/a/1.jpg").write_bytes(jpeg(1)[:-30])
    (root / "train/a/2.jpg").write_bytes(png(2))
    (root / "train/a/copy.jpg").write_bytes((root / "val/a/0.jpg").read_bytes())
    (root / "train/a/notes.txt").write_text("not an image")
    (root / "list.csv").write_text("\n".join(rows), "utf-8")
    return root


def test_folder_with_all_findings(tahoe: Tahoe, pets: Path) -> None:
    options = [
        "--dedupe",
        "--max-side",
        "60",
        "--max-bad-fraction",
        "0.05",
        "--shard-bytes",
        "20kB",
    ]
    done = tahoe("shard", "folder", str(pets), "set", *options)
    for text in (
        "kB per image", "images/s decoded, 1 thread", "set is written",
        "train: 29 images of 2 classes", ".txt: 1 (train/a/notes.txt)",
        "corrupt: 1 (2.44%) cannot be decoded: left out", "train/a/1.jpg: is truncated",
        "wrong_extension: 1", "train/a/2.jpg", "leak: 1", "train/a/copy.jpg is val/a/0.jpg",
        "shrunk: 38",
    ):  # fmt: skip
        assert text in done.stdout, done.stdout
    report = json.loads((tahoe.cwd / "set/quality_report.json").read_text())
    assert report["rules"]["corrupt"]["count"] == 1
    assert len(read_manifest(str(tahoe.cwd / "set"), "train").shards) > 1
    before = contents(tahoe.cwd / "set")
    again = tahoe("shard", "folder", str(pets), "set", *options)
    assert "is kept" in again.stdout
    assert "corrupt: 1 (2.44%)" in again.stdout
    assert "kB per image" not in again.stdout
    assert contents(tahoe.cwd / "set") == before
    assert tahoe("shard", "verify", "set").returncode == 0


@pytest.mark.slow
def test_csv_with_several_labels(tahoe: Tahoe, pets: Path) -> None:
    columns = ["--path-column", "file", "--label-column", "kinds", "--multi-label", ";"]
    settings = ["--val-fraction", "0.25", "--max-bad-fraction", "0.1", "--samples-per-shard", "10"]
    tahoe("shard", "csv", str(pets / "list.csv"), "set", *columns, *settings)
    manifest = read_manifest(str(tahoe.cwd / "set"), "train")
    assert manifest.classes == ("a", "b", "犬")
    assert (manifest.labels.kind, len(manifest.shards)) == ("multi", 3)
    assert tahoe("shard", "verify", "set").returncode == 0
    settings = ["--path-column", "file", "--no-labels", "--val-fraction", "0.25"]
    stopped = tahoe("shard", "csv", str(pets / "list.csv"), "other", *settings, check=False)
    assert stopped.returncode == 1
    assert "corrupt" in stopped.stderr
    tahoe("shard", "csv", str(pets / "list.csv"), "other", *settings, "--max-bad-fraction", "0.1")
    assert read_manifest(str(tahoe.cwd / "other"), "train").labels.kind == "none"


def test_no_table_without_an_image_in_it(tahoe: Tahoe, tmp_path: Path) -> None:
    for number in range(4):
        path = (
            tmp_path / "huge" / ("train", "val")[number % 2] / "ab"[number // 2] / f"{number}.png"
        )
        path.parent.mkdir(parents=True)
        path.write_bytes(bomb())
    done = tahoe("shard", "folder", str(tmp_path / "huge"), "set", "--max-side", "9", check=False)
    assert done.returncode == 1
    assert "2 training images of over 89 megapixels" in done.stdout
    assert "before" not in done.stdout
    assert "too large" in done.stderr
    assert "--max-megapixels" in done.stderr


def test_invalid_options_are_refused(tahoe: Tahoe, pets: Path) -> None:
    def refused(*options: str) -> str:
        done = tahoe("shard", "folder", str(pets), "set", *options, check=False)
        assert done.returncode in (1, 2)
        assert not (tahoe.cwd / "set").exists()
        return done.stderr

    assert "exclude each other" in refused("--samples-per-shard", "5", "--shard-bytes", "5MB")
    assert "'many'" in refused("--shard-bytes", "many")
    assert "exclude each other" in refused("--max-side", "5", "--short-side", "5")
    assert "quality=0" in refused("--max-side", "5", "--quality", "0")
    assert "samples_per_shard=0" in refused("--samples-per-shard", "0")


@pytest.mark.slow
def test_an_object_store_gets_the_same_bytes(tahoe: Tahoe, pets: Path, s3_server: S3) -> None:
    options = ["--max-bad-fraction", "0.1", "--samples-per-shard", "5"]
    tahoe("shard", "folder", str(pets), "set", *options)
    s3_server.fail()
    url = s3_server.url("my sets", "pets")
    tahoe("shard", "folder", str(pets), url, *options, "--num-workers", "2")
    store = fsspec.filesystem("s3")
    store.invalidate_cache()
    found = sorted(store.find(url))
    expected = sorted(path for path in (tahoe.cwd / "set").rglob("*") if path.is_file())
    assert [name.partition("/pets/")[2] for name in found] == [
        str(path.relative_to(tahoe.cwd / "set")) for path in expected
    ]
    for name, path in zip(found, expected, strict=True):
        assert store.cat_file(name) == path.read_bytes()


def test_progress_on_a_terminal(tahoe: Tahoe, pets: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["shard", "folder", str(pets), "set", "--max-bad-fraction", "0.1", "--dedupe"]
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli.main", *arguments],
        cwd=tahoe.cwd, env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    output, deadline_s = b"", time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < deadline_s and select.select([ours], [], [], DEADLINE_S)[0]:
            output += os.read(ours, 1 << 16)
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=DEADLINE_S) == 0
    text = output.decode()
    for shown in "hashing", "writing", "40/40", "images/s", "MB/s":
        assert shown in text, text
