"""A run directory is never half written, never used twice at once, and counts its attempts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_sharding.io.atomic_file import write_atomic
from orchestrator.run.rundir import FileIn, RunDir, RunError, append_json_line, read_json_lines

WRITE_FOREVER = """
import sys
from itertools import count
from pathlib import Path
from orchestrator.run.rundir import FileIn, RunDir
run = RunDir(Path(sys.argv[1]))
for n in count(1):
    run.write_json(run.outcome_file, {"n": n, "filling": [n] * 50_000})
"""
HOLD_THE_LOCK = """
import subprocess, sys, time
from pathlib import Path
from orchestrator.run.rundir import FileIn, RunDir
with RunDir(Path(sys.argv[1])).lock() as lock:
    if "with a rank" in sys.argv:
        rank = subprocess.Popen(["sleep", "60"], pass_fds=[lock], stdout=subprocess.DEVNULL)
        print(rank.pid, flush=True)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    path = tmp_path / "a run"
    path.mkdir()
    return RunDir(path)


@contextmanager
def python(script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a script, and kill it at the end."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_writer_leaves_a_whole_file(run: RunDir) -> None:
    for _ in range(2):
        seen = set()
        with python(WRITE_FOREVER, str(run.path)):
            while len(seen) < 5:
                seen.add(read_complete(run))
        read_complete(run)


def read_complete(run: RunDir) -> int:
    content = run.read_json(run.outcome_file) or {"n": 0, "filling": [0] * 50_000}
    assert content["filling"] == [content["n"]] * 50_000
    number: int = content["n"]
    return number


FULL_DISK = """
import pathlib, resource, sys
from data_sharding.io.atomic_file import write_atomic

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(pathlib.Path(sys.argv[1]), "x" * 2000)
except OSError:
    sys.exit(75)
"""


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.json"
    file.write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(file)], timeout=60, check=False)
    assert done.returncode == 75
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_text() == "old"


def test_text_and_bytes_are_written_unchanged(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "ä\r\n")
    write_atomic(tmp_path / "bytes", b"\xff\r\n")
    assert (tmp_path / "text").read_bytes() == "ä\r\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\xff\r\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_incomplete_line_is_skipped_and_does_not_damage_the_next(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert list(read_json_lines(file)) == []
    append_json_line(file, {"n": 1})
    with file.open("ab") as torn:
        torn.write(b'{"n": 2, "te')
    assert list(read_json_lines(file)) == [{"n": 1}]
    append_json_line(file, {"n": 3})
    append_json_line(file, {"n": 4})
    assert list(read_json_lines(file)) == [{"n": 1}, {"n": 3}, {"n": 4}]


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    file, lines = tmp_path / "lines.jsonl", [{"n": n, "filling": "x" * 20_000} for n in range(200)]
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda line: append_json_line(file, line), lines))
    assert sorted(read_json_lines(file), key=lambda line: line["n"]) == lines


def test_a_run_is_locked_by_one_process_and_free_after_its_kill(run: RunDir) -> None:
    with python(HOLD_THE_LOCK, str(run.path)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError) as refused, run.lock():
            raise AssertionError("held twice")
        assert f"(process {holder.pid} on " in str(refused.value)
        command = refused.value.hint.partition("stop it: ")[2]
        subprocess.run(["sh", "-c", command], check=True)
        assert run.stop_file.exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run.lock():
            pass


def test_a_rank_that_outlives_its_launcher_keeps_the_lock(run: RunDir) -> None:
    with python(HOLD_THE_LOCK, str(run.path), "with a rank") as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        assert launcher.stdout.readline() == "held\n"
    with pytest.raises(RunError), run.lock():
        pass
    os.kill(rank, signal.SIGKILL)
    wait_until_free(run)


def wait_until_free(run: RunDir) -> None:
    for _ in range(100):
        try:
            with run.lock():
                return
        except RunError:
            time.sleep(0.1)
    raise AssertionError("the run is still held")


def test_attempts_are_counted_from_one(run: RunDir) -> None:
    assert run.num_attempts == 0
    assert run.begin_attempt(world_size=2) == 1
    run.end_attempt(1, exit_code=75)
    assert run.begin_attempt() == 2  # killed: it does not end
    with run.attempts_file.open("ab") as torn:
        torn.write(b'{"attempt": 3, "start')
    assert run.begin_attempt() == 3
    assert run.num_attempts == 3
    first, last, *_ = read_json_lines(run.attempts_file)
    assert (first["world_size"], last["exit_code"]) == (2, 75)
    assert first["started_s"] <= last["ended_s"]


def test_a_run_is_finished_when_its_last_attempt_is(run: RunDir) -> None:
    assert not run.is_finished
    for outcome, is_finished in (("stopped", False), ("finished", True)):
        attempt = run.begin_attempt()
        assert not run.is_finished
        run.write_json(run.outcome_file, {"outcome": outcome, "attempt": attempt})
        assert run.is_finished == is_finished
    run.begin_attempt()  # it was extended
    assert not run.is_finished


def test_a_directory_without_a_run_is_refused(run: RunDir) -> None:
    file = run.path / "file"
    file.touch()
    for path in (run.path, run.path / "missing", file):
        with pytest.raises(RunError) as refused:
            RunDir(path).read_config()
        assert refused.value.value == path


@pytest.mark.parametrize("text", ["seed: [", "- 1"])
def test_a_damaged_config_is_refused(run: RunDir, text: str) -> None:
    run.config_file.write_text(text)
    with pytest.raises(RunError) as refused:
        run.read_config()
    assert refused.value.value == run.config_file


def test_all_paths_of_a_run_are_in_its_directory(run: RunDir) -> None:
    paths = [getattr(run, name) for name, kind in vars(RunDir).items() if isinstance(kind, FileIn)]
    paths += [run.log_dir(12), run.samples_file(12, 3)]
    assert len(set(paths)) == len(paths) >= 11
    assert all(path.is_relative_to(run.path) for path in paths)
