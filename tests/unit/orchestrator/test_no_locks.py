"""A file system without locks: writers fail with an error, and readers work."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from without_locks import NUMBERS, without_locks

from data_sharding.errors import DataError
from data_sharding.io.file_lock import exclusive_lock, remove_if_unlocked, shared_lock
from data_sharding.storage.cache import free_bytes
from orchestrator.cli.main import main
from orchestrator.config.parse import parse
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.preflight.local_checks import check_run_dir
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.tracking.mlflow_store.client import open_client


@pytest.fixture
def run(values: dict[str, Any], shards: Path, tmp_path: Path) -> RunDir:
    """Return a run whose attempt may be going on, as far as its files tell."""
    values["data"]["url"] = str(shards)
    values["tracking"]["uri"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    path = tmp_path / "runs" / "one"
    run_dir, _ = create_or_open_run(ComposedConfig(parse(values | {"run_dir": str(path)}), ()))
    run_dir.begin_attempt(num_steps=14)
    return run_dir


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_is_not_held_and_nothing_is_said_of_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert run.is_alive is False
    without_locks(run.path, monkeypatch, number)
    assert run.is_alive is None
    with pytest.raises(RunError) as refused, run.lock():
        pass
    assert f"{run.path} is on a file system without locks" in str(refused.value)
    assert "runs_dir=" in str(refused.value)


@pytest.mark.parametrize(
    "verb", [("resume",), ("sync",), ("ckpt", "prune")], ids=lambda verb: verb[-1]
)
def test_what_would_write_there_says_so(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: tuple[str, ...],
) -> None:
    without_locks(run.path, monkeypatch, errno.ENOLCK)
    assert main([*verb, str(run.path)]) == 1
    (output,) = capsys.readouterr().err.splitlines()
    assert "without locks" in output


def test_a_run_is_not_begun_there(
    run: RunDir,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = tmp_path / "runs" / "new"
    without_locks(tmp_path / "runs", monkeypatch, errno.ENOSYS)
    data = ("data=digits", f"data.url='{shards}'")
    assert main(["train", "model=lenet5_1998", *data, f"run_dir='{new}'"]) == 1
    assert "without locks" in capsys.readouterr().err
    assert not new.exists()
    with pytest.raises(RunError, match="without locks"):
        check_run_dir(parse(run.read_config()))


@pytest.mark.parametrize(
    "verb", [("status", "--json"), ("list", "--json"), ("compare",)], ids=lambda verb: verb[0]
)
def test_what_only_looks_does_its_work(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: tuple[str, ...],
) -> None:
    without_locks(run.path.parent, monkeypatch, errno.EOPNOTSUPP)
    where = ["--runs-dir", str(run.path.parent)] if verb[0] == "list" else [str(run.path)]
    assert main([*verb, *where]) == 0
    output = capsys.readouterr().out
    if "--json" in verb:
        (one,) = json.loads(output)
        assert one["state"] == "crashed"  # as its files say, and that it may run
        assert str(run.lock_file) in one["why"]


def test_stores_and_files_of_a_node_say_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    without_locks(tmp_path, monkeypatch, errno.ENOLCK)
    with (
        pytest.raises(RunError, match="without locks"),
        open_client(f"sqlite:///{tmp_path}/mlflow.db"),
    ):
        pass
    for lock in (exclusive_lock, shared_lock):
        with pytest.raises(OSError, match="without locks"), lock(file):
            pass
    with pytest.raises(OSError, match="without locks"):
        remove_if_unlocked(file)
    with pytest.raises(DataError, match="without locks"):
        free_bytes(tmp_path)
