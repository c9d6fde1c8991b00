"""A write that is killed, anywhere and as often as you like, ends as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import Started, Tahoe
from foreign_shards import contents, jpeg

DEADLINE_S = 60
EACH_OPERATION = """
import os, sys
from pathlib import Path
from data_sharding.io import filesystem
from data_sharding.sources.folder import folder
from data_sharding.writing import dataset_writer
from data_sharding.writing.shard_writer import ImageChecks

source, root = folder(sys.argv[1]), Path(sys.argv[2])
left = 0  # operations on files until the power goes

def counted(operation):
    def run(*arguments, **settings):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return operation(*arguments, **settings)
    return run

def write_in_a_process(url, num_operations):
    global left
    pid = os.fork()
    if pid == 0:
        left = num_operations
        checks = ImageChecks(1, dedupe=True)
        dataset_writer.write_dataset(source, url, seed=0, samples_per_shard=4, checks=checks)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

of_files = ("write_bytes", "open_for_write", "remove", "remove_directory")
for module, name in (*((filesystem, n) for n in of_files), (Path, "unlink"), (Path, "replace")):
    setattr(module, name, counted(getattr(module, name)))
for number in range(1, 1000):
    url = str(root / str(number))
    code = write_in_a_process(url, number)
    if code == 0:
        break
    assert code == 9
    assert write_in_a_process(url, number + 3) in (0, 9)
    assert write_in_a_process(url, 0) == 0
"""


def make_images(root: Path, num: int) -> Path:
    """Write images in two classes, one of them damaged and one a copy of another."""
    for number in range(num):
        split = "val" if number % 4 == 0 else "train"
        path = root / split / "ab"[number // 4 % 2] / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number)[: 100 if number == 1 else None])
    (root / "train" / "a" / "copy.jpg").write_bytes(jpeg(3))
    return root


def test_a_crash_at_each_operation_on_files(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 9)
    arguments = [sys.executable, "-c", EACH_OPERATION, images, tmp_path / "sets"]
    home = Path(__file__).parents[3]
    done = subprocess.run(
        arguments, cwd=home, timeout=DEADLINE_S, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    trees = [
        contents(path) for path in sorted((tmp_path / "sets").iterdir(), key=lambda p: int(p.name))
    ]
    assert len(trees) > 25
    assert {name.partition("/")[0] for name in trees[-1]} == {"train", "val", "quality_report.json"}
    for number, tree in enumerate(trees, start=1):
        assert tree == trees[-1], f"killed at operation {number}"


def records(url: Path) -> dict[Path, tuple[int, int]]:
    """Return the finished shards, with what would change if one was written again."""
    found = {}
    for record in (url / "in_progress").glob("*-*.json"):
        split, _, number = record.stem.partition("-")
        path = url / split / f"shard-{number}.tar"
        if path.exists():
            found[path] = path.stat().st_ino, path.stat().st_mtime_ns
    return found


def kill_group(started: Started) -> None:
    """End a command and all of its processes as a power cut would."""
    os.killpg(started.process.pid, signal.SIGKILL)
    started.process.communicate(timeout=DEADLINE_S)


def wait_for_records(url: Path, num: int, started: Started) -> None:
    """Wait until so many shards are finished, or the command has ended."""
    deadline_s = time.monotonic() + DEADLINE_S
    while len(records(url)) < num and started.process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("num_kills", "num_images"),
    [(5, 80), pytest.param(50, 600, marks=[pytest.mark.slow, pytest.mark.long])],
)
@pytest.mark.timeout(600)
def test_killed_again_and_again(
    tahoe: Tahoe, tmp_path: Path, num_kills: int, num_images: int
) -> None:
    images, draw = make_images(tmp_path / "images", num_images), random.Random(num_kills)
    options = [
        "--samples-per-shard",
        "1",
        "--num-workers",
        "2",
        "--dedupe",
        "--max-bad-fraction",
        "1",
    ]
    tahoe("shard", "folder", str(images), str(tmp_path / "undisturbed"), *options)
    expected, url, num_done = contents(tmp_path / "undisturbed"), tmp_path / "set", 0
    while num_done < num_kills:
        before = records(url)
        started = tahoe.start("shard", "folder", str(images), str(url), *options)
        if draw.random() < 0.7:
            wait_for_records(url, len(before) + draw.randrange(1, 5), started)
        time.sleep(draw.random() * 0.05)
        if started.process.poll() is None:
            kill_group(started)
            num_done += 1
        else:  # start over
            assert started.finish() == 0, started.output
            assert contents(url) == expected
            url = tmp_path / f"set-{num_done}"
        for path, state in before.items():
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == state, "a finished shard again"
    tahoe("shard", "folder", str(images), str(url), *options)
    assert contents(url) == expected


@pytest.mark.slow
def test_only_the_first_process_is_killed(tahoe: Tahoe, tmp_path: Path) -> None:
    images, url = make_images(tmp_path / "images", 100), tmp_path / "set"
    arguments = ["shard", "folder", str(images), str(url), "--samples-per-shard", "1"]
    arguments += ["--num-workers", "2", "--max-bad-fraction", "1"]
    started = tahoe.start(*arguments)
    wait_for_records(url, 3, started)
    started.process.kill()
    started.process.communicate(timeout=DEADLINE_S)  # its output is closed when the last has ended
    assert (url / "in_progress.json").exists()
    tahoe(*arguments)
    tahoe(*arguments[:3], str(tmp_path / "undisturbed"), *arguments[4:])
    assert contents(url) == contents(tmp_path / "undisturbed")


def test_ctrl_c_ends_all_and_the_same_command_continues(tahoe: Tahoe, tmp_path: Path) -> None:
    images, url = make_images(tmp_path / "images", 200), tmp_path / "set"
    arguments = ["shard", "folder", str(images), str(url), "--samples-per-shard", "1"]
    arguments += ["--num-workers", "2", "--max-bad-fraction", "1"]
    started = tahoe.start(*arguments)
    wait_for_records(url, 3, started)
    os.killpg(started.process.pid, signal.SIGINT)
    assert started.finish() == 130, started.output
    assert "The same command continues" in started.output
    assert "Traceback" not in started.output
    before = records(url)
    tahoe(*arguments)
    for path, state in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == state
    assert not (url / "in_progress").exists()
