"""A `checkpoint.url` is of one run: another is refused, the run itself may be moved."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from cli_runner import Tahoe

from data_sharding.io import filesystem
from orchestrator.checkpoint.owner import claim, owner
from orchestrator.config.parse import parse
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.launch.resume_run import resume_run
from orchestrator.run.rundir import RunDir, RunError


@pytest.fixture(params=["disk", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "check points")
    else:
        yield "memory://checkpoints"
        fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.fixture
def open_run(
    url: str, values: dict[str, Any], shards: Path, tmp_path: Path
) -> Callable[[str, int], RunDir]:
    """Return a function that creates or opens the run of a name and a seed, with that store."""
    values["data"]["url"], values["checkpoint"]["url"] = str(shards), url

    def create(name: str, seed: int) -> RunDir:
        config = parse(values | {"run_dir": str(tmp_path / name), "seed": seed})
        return create_or_open_run(ComposedConfig(config, ()))[0]

    return create


OpenRun = Callable[[str, int], RunDir]


def test_a_second_run_is_refused_before_anything_is_saved(open_run: OpenRun, url: str) -> None:
    first = open_run("first", 1)
    with pytest.raises(RunError, match=f"belongs to the run {first.path}") as error:
        open_run("second", 2)
    assert error.value.value == url
    assert not first.path.with_name("second").exists()
    assert owner(url)["run"] == str(first.path)
    assert open_run("first", 1) == first
    resume_run(first, [])


def test_of_runs_that_claim_at_once_one_owns_the_store(open_run: OpenRun, url: str) -> None:
    runs = [open_run("run", 1)]
    for number in range(7):
        runs.append(RunDir(shutil.copytree(runs[0].path, runs[0].path.with_name(f"{number}"))))
        runs[-1].write_json(runs[-1].identity_file, {"uid": f"{number}"})
    config = parse(runs[0].read_config())

    def takes(run: RunDir) -> bool:
        try:
            claim(run, config)
        except RunError:
            return False
        return True

    filesystem.remove(filesystem.join(url, "owner.json"))
    with ThreadPoolExecutor(len(runs)) as pool:
        took = [*pool.map(takes, runs)]
    assert took.count(True) == 1 or url.startswith("memory:")  # which has no exclusive writes
    assert [takes(run) for run in runs].count(True) == 1


def test_a_copy_is_refused_and_a_moved_run_is_not(open_run: OpenRun, url: str) -> None:
    first = open_run("first", 1)
    copy = RunDir(shutil.copytree(first.path, first.path.with_name("copy")))
    with pytest.raises(RunError, match=f"belongs to the run {first.path}"):
        resume_run(copy, [])
    moved = RunDir(first.path.rename(first.path.with_name("moved")))
    resume_run(moved, [])
    assert owner(url)["run"] == str(moved.path)
    with pytest.raises(RunError, match=f"belongs to the run {moved.path}"):
        resume_run(copy, [])


@pytest.mark.slow
def test_a_worker_leaves_the_checkpoints_of_another_run_alone(
    train: Callable[..., RunDir], tahoe: Tahoe
) -> None:
    first = train("first", "recipe.steps=2", "checkpoint.url=checkpoints")
    copy = RunDir(shutil.copytree(first.path, tahoe.cwd / "copy"))
    found = (tahoe.cwd / "checkpoints").rglob("*")
    saved = {path: path.read_bytes() for path in found if path.is_file()}
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    copy.begin_attempt()
    at = {"TAHOE_ATTEMPT": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.training.worker", str(copy.path)],
        env=os.environ | ranks | at,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 93, done.stdout + done.stderr
    assert str(first.path) in (copy.read_json(copy.outcome_file) or {})["reason"]
    assert {path: path.read_bytes() for path in saved} == saved
