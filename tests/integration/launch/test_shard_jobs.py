"""`tahoe shard --on`: what a job does with its part, and what is refused before there is a job."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from foreign_shards import contents, jpeg

from data_sharding.sources.base import Source
from data_sharding.sources.folder import folder
from data_sharding.writing.dedupe import Duplicates
from data_sharding.writing.parts import PlannedParts, plan_parts, save_parts
from data_sharding.writing.shard_tasks import WriteSettings, divide_into_shards
from data_sharding.writing.shard_writer import ImageChecks
from orchestrator.cli.main import main
from orchestrator.jobs import shard_part

SETTINGS = WriteSettings(0, samples_per_shard=2, checks=ImageChecks())


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A source by a relative path, which the working directory of a job does not fit."""
    for number in range(8):
        split, name = ("val" if number % 4 == 0 else "train"), "ab"[number // 4]
        path = tmp_path / "photos" / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    monkeypatch.chdir(tmp_path)
    source = folder("photos")
    before = signal.getsignal(signal.SIGUSR2)
    yield source
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def job(photos: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a job that writes all of `photos` to `set`."""
    names = plan_parts(photos, "set", SETTINGS, num_workers=1)
    (tmp_path / "job").mkdir()
    plan = PlannedParts("set", str(tmp_path), SETTINGS, names, num_parts=1, num_workers=1)
    save_parts(plan, photos, tmp_path / "job")
    monkeypatch.chdir("/")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    return tmp_path / "job"


@contextmanager
def stopped_while_reading(path: Path) -> Iterator[None]:
    """Send this thread the signal of the time limit once it reads a file; restore the file then."""
    aside, main_thread = path.with_name("aside"), threading.get_ident()
    path.rename(aside)
    os.mkfifo(path)

    def stop_the_reader() -> None:
        with suppress(BrokenPipeError), path.open("wb", buffering=0) as file:
            file.write(bytes(1 << 17))  # more than the pipe holds: it is read
            signal.pthread_kill(main_thread, signal.SIGUSR2)

    thread = threading.Thread(target=stop_the_reader)
    thread.start()
    try:
        yield
    finally:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # if nobody has read it
        thread.join()
        aside.rename(path)


@pytest.mark.parametrize(("number", "code"), [(0, 1), (-1, 75)])
def test_a_part_that_is_stopped_goes_on_if_it_has_written_a_shard(
    number: int,
    code: int,
    photos: Source,
    job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = divide_into_shards(photos, SETTINGS.facts(photos), Duplicates())[number]
    sample = photos.splits[task.split][int(task.members[-1])]
    with stopped_while_reading(tmp_path / sample.origin):
        assert shard_part.main([str(job)]) == code
    assert shard_part.main([str(job)]) == 0
    assert not (tmp_path / "set" / "train" / "manifest.json").exists()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert shard_part.main([str(job)]) == 0
    assert not (job / "source.safetensors").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["shard", "folder", "photos", "one", "--samples-per-shard", "2"]) == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "one")


def test_an_error_is_in_the_log(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "photos" / "val" / "b" / "4.jpg"
    lost.unlink()
    assert shard_part.main([str(job)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: ")
    assert str(lost.relative_to(tmp_path)) in line


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--on", "data=shards"), 93, "data=shards"),
        (("--on", "slurm.nodes=2"), 93, "slurm.nodes=2"),
        (("--wait",), 2, "--wait"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...],
    code: int,
    named: str,
    photos: Source,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["shard", "folder", "photos", "set", *options]) == code
    assert named in capsys.readouterr().err
    assert not Path("set").exists()


def test_no_password_is_written(photos: Source, capsys: pytest.CaptureFixture[str]) -> None:
    url = "ftp://me:secret@host/set"
    assert main(["shard", "folder", "photos", url, "--on", "slurm=default"]) == 1
    assert "secret" not in capsys.readouterr().err
    assert not Path("runs").exists()
