"""A data set that jobs write, some of them killed or cancelled, is the one of a single process."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runner import Tahoe
from cluster_runs import environ
from foreign_shards import contents, jpeg

from data_sharding.sources.base import Source
from data_sharding.writing.dedupe import find_duplicates
from data_sharding.writing.parts import PlannedParts, load_parts
from data_sharding.writing.shard_tasks import divide_into_shards
from orchestrator.cli.main import main
from orchestrator.run.rundir import read_json_lines
from slurm.local_cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 60
JOBS = "slurm_jobs.jsonl"
HOLD = "+slurm.additional_parameters.hold=true"
ON = ("slurm=default", "slurm.code_snapshot_max_mb=null", HOLD)


def test_jobs_that_are_killed_and_cancelled(
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_photos(tmp_path / "my photos")
    tahoe = Tahoe(tmp_path)
    monkeypatch.chdir(tmp_path)
    write = ("shard", "folder", "my photos", "--samples-per-shard", "4", "--dedupe")
    write = (*write, "--max-bad-fraction", "0.1")
    assert main([*write, "one"]) == 0
    by_jobs = (*write, "set", *(a for o in ON for a in ("--on", o)), "--num-parts", "4")

    given_up = tahoe.start(*by_jobs, "--wait")
    given_up.wait_for("submitted job")
    slurm("scancel", "--me")
    assert given_up.finish() == 1
    assert "0 of 12 shards" in given_up.output

    assert main([*by_jobs]) == 0
    (home,) = (tmp_path / "runs").iterdir()
    *_, part, end = (str(line["slurm_job_id"]) for line in read_json_lines(home / JOBS))
    array = part.partition("_")[0]
    assert main([*by_jobs]) == 1
    assert array in capsys.readouterr().err
    watching = tahoe.start(*by_jobs, "--wait")
    watching.wait_for(array)
    os.kill(watching.process.pid, signal.SIGINT)
    assert watching.finish() == 130

    plan, source = load_parts(home)
    assert len(plan.names) == 12
    reading = [tmp_path / last_of_part(plan, source, part) for part in (1, 3)]
    slurm("scancel", f"{array}_2")  # the last job does its part
    with held_while_reading(reading[0]) as killed, held_while_reading(reading[1]) as stopped:
        slurm("scontrol", "release", array, end)
        wait(killed, "reader")
        wait(stopped, "reader")
        wait(lambda: plan.num_finished() == 7, "other part")
        assert not (tmp_path / "set" / "train" / "manifest.json").exists()
        os.kill(pid_of_part(1, home), signal.SIGKILL)
        slurm("scancel", "--signal=USR2", f"{array}_3")  # as before the time limit
        wait(lambda: "Killed" in text_of(home, f"slurm/{array}_1.out"), "end of the process")
        wait(lambda: "stopped before" in text_of(home, log(3)), "stop before the limit")
    assert main([*by_jobs, "--wait"]) == 0
    for part in (1, 3):
        assert f"part {part} of 4 is complete: 3 shards" in text_of(home, log(part))
    assert not text_of(home, log(2))
    assert contents(tmp_path / "set") == contents(tmp_path / "one")


def make_photos(root: Path) -> None:
    for number in range(46):
        split, name = ("val" if number % 4 == 0 else "train"), "abc"[number % 3]
        path = root / split / name / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number)[: 200 if number == 7 else None])
    (root / "train" / "b" / "copy.jpg").write_bytes(jpeg(1))


def last_of_part(plan: PlannedParts, source: Source, part: int) -> str:
    """Return the path of the image that a part reads last."""
    found = find_duplicates(source, num_workers=1, on_progress=lambda done, total: None)
    tasks = divide_into_shards(source, plan.settings.facts(source), found)
    (last,) = (task for task in tasks if task.record_name == plan.names_of(part)[-1])
    return source.splits[last.split][int(last.members[-1])].origin


def log(part: int) -> str:
    return f"logs/part-{part:04d}/rank-00000.log"


def pid_of_part(part: int, home: Path) -> int:
    """Return the process of a part, which is one of this machine."""
    command = ["pgrep", "-f", f"orchestrator.jobs.shard_part {home}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    mine = {f"SLURM_ARRAY_TASK_ID={part}", "SLURM_STEP_ID=0"}  # srun itself is in no step
    (pid,) = (pid for pid in map(int, found) if mine.issubset(environ(pid)))
    return pid


def text_of(home: Path, pattern: str) -> str:
    return "".join(path.read_text() for path in home.glob(pattern))


def slurm(*command: str) -> None:
    subprocess.run(command, check=True)


def wait(is_true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s, f"no {what}"
        time.sleep(0.1)


@contextmanager
def held_while_reading(path: Path) -> Iterator[Callable[[], bool]]:
    """Make whoever reads a file wait; yield a function that tells if somebody reads it."""
    aside, files = path.with_suffix(".aside"), list[int]()
    path.rename(aside)
    os.mkfifo(path)

    def is_read() -> bool:
        try:
            files.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody
            return False
        aside.rename(path)  # for those who read it later
        return True

    try:
        yield is_read
    finally:
        for file in files:
            os.close(file)
