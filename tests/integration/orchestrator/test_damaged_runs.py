"""A run directory that is damaged, or somebody else's: it is named, and hides no other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.config.parse import parse
from orchestrator.jobs import job_hooks
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir

TRUNCATED = '{"outcome": "fin'
DAMAGES = [
    ("run_info.json", TRUNCATED),
    ("run_info.json", "[]"),
    ("run_info.json", None),
    ("outcome.json", TRUNCATED),
    ("mlflow.json", ""),
    ("config.yaml", None),
    ("config.yaml", "\udcff"),
    ("attempts.jsonl", None),
    ("metrics.jsonl", None),
]


@pytest.fixture
def runs(values: dict[str, Any], shards: Path, tmp_path: Path) -> tuple[RunDir, RunDir]:
    """Return two runs that an attempt of each has been made of, and has not been noted to end."""
    values["data"]["url"] = str(shards)
    found = []
    for seed in (1, 2):
        path = str(tmp_path / "runs" / f"run-{seed}")
        run, _ = create_or_open_run(
            ComposedConfig(parse(values | {"run_dir": path, "seed": seed}), ())
        )
        run.begin_attempt(num_steps=14)
        found.append(run)
    return found[0], found[1]


def damage(run: RunDir, name: str, content: str | None) -> Path:
    """Put something else in the place of a file; None: a directory, which nobody can read."""
    file = run.path / name
    file.unlink(missing_ok=True)
    if content is None:
        file.mkdir()
    else:
        file.write_text(content, errors="surrogateescape")
    return file


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_run_hides_no_other(
    runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str], name: str, content: str | None
) -> None:
    file = damage(runs[0], name, content)
    place = str(runs[0].path.parent)
    for verb in (["list", "--runs-dir", place], ["compare", "--runs-dir", place]):
        assert main([*verb, "--json"]) == 0
        said = capsys.readouterr()
        assert runs[1].id in json.dumps(json.loads(said.out))
        assert str(file) in said.err
        assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_run_is_one_clear_error(
    runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str], name: str, content: str | None
) -> None:
    file = damage(runs[0], name, content)
    assert main(["status", str(runs[0].path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert str(file) in said


@pytest.mark.parametrize(
    ("verb", "name"),
    [("resume", "run_info.json"), ("resume", "outcome.json"), ("sync", "mlflow.json")],
)
def test_what_would_go_on_with_a_damaged_run_does_not(
    runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str], verb: str, name: str
) -> None:
    file = damage(runs[0], name, TRUNCATED)
    assert main([verb, str(runs[0].path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert str(file) in said


def test_a_table_is_refused_before_a_run_is_judged(
    runs: tuple[RunDir, RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "gone" / "table.csv"
    assert main(["evaluate", str(runs[0].path), "--confusion-matrix", str(table)]) == 1
    assert str(table) in capsys.readouterr().err


def test_an_attempt_that_is_not_noted_is_counted_all_the_same(runs: tuple[RunDir, RunDir]) -> None:
    run = runs[0]
    run.log_dir(1).mkdir(parents=True)
    run.attempts_file.unlink()
    assert run.begin_attempt() == 2
    assert run.num_attempts == 2
    assert not run.log_dir(2).exists()


LIST_AND_LOOK = """
import sys
from pathlib import Path
from orchestrator.cli.main import main
run = Path(sys.argv[1])
assert main(["list", "--json", "--runs-dir", str(run.parent)]) == 0
assert main(["status", str(run)]) == 1
"""


def test_a_run_of_somebody_else_is_passed_over(runs: tuple[RunDir, RunDir]) -> None:
    runs[0].path.chmod(0)
    command = [sys.executable, "-c", LIST_AND_LOOK, str(runs[0].path)]
    if os.geteuid() == 0:  # whom nothing is closed to, unless this is taken away
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    runs[0].path.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert [found["run"] for found in json.loads(done.stdout)] == [runs[1].id]
    passed_over, error = done.stderr.splitlines()
    assert str(runs[0].path) in passed_over
    assert str(runs[0].path) in error


def test_a_job_says_which_file_is_damaged(
    runs: tuple[RunDir, RunDir], capfd: pytest.CaptureFixture[str]
) -> None:
    file = damage(runs[0], "outcome.json", TRUNCATED)
    assert job_hooks.main(["begin", str(runs[0].path), "node1"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert str(file) in said.err
