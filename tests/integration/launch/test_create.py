"""`tahoe create`: a run directory and its path, and nothing started."""

from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.run.outcome import RunOutcome
from orchestrator.run.rundir import RunDir
from orchestrator.run.sweepdir import sweep_of


@pytest.fixture
def arguments(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["create", f"data.url='{shards}'", "tracking=none", "recipe.epochs=2"]


def test_create_prints_the_paths_alone_and_starts_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "-m", "run_dir='run ${seed}'", "seed=1,2"]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == [str(tmp_path / "run 1"), str(tmp_path / "run 2")]
    for path in paths:
        run = RunDir(Path(path))
        assert run.read_config()["recipe"]["epochs"] == 2
        assert (run.num_attempts, run.is_alive) == (0, False)
        assert sweep_of(run) is not None


def test_create_continues_and_respects_if_finished(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments.append("run_dir=run")
    run = RunDir(tmp_path / "run")
    assert main(arguments) == 0
    run.stop_file.parent.mkdir()
    run.stop_file.touch()
    assert main(arguments) == 0
    assert not run.stop_file.exists()  # whoever stopped it goes on now
    with run.lock():
        assert main(arguments) == 1
    RunOutcome("finished", 14, "done").write(run, run.begin_attempt())
    assert main(arguments) == 1
    capsys.readouterr()
    assert main([*arguments, "if_finished=skip"]) == 0
    assert capsys.readouterr().out == f"{run.path}\n"
    assert main([*arguments, "if_finished=rerun"]) == 0
    assert capsys.readouterr().out == f"{run.path}\n"
    assert run.num_attempts == 0
    assert (tmp_path / "run.1").is_dir()
