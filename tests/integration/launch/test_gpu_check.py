"""`make test-gpu`: every check runs here on the CPU, in a tiny form; without a GPU it says so."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "gpu" / "check.py"


def check(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=environ, check=False
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_every_check_works_on_the_cpu(tmp_path: Path) -> None:
    done = check(tmp_path, "--device", "cpu", "--quick", "--seconds", "260")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["section"] for row in rows}) == 6
    assert (tmp_path / "gpu.md").read_text().count("| ok |") == len(rows)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_check_that_fails_or_hangs_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    session_module = importlib.import_module("session")
    session = session_module.Session("cpu", True, tmp_path, 60.0, section="made up")
    session.run("fails", lambda: 1 / 0)
    session.run("hangs", lambda: time.sleep(600), limit_s=0.2)
    session.run("works", lambda: {"number": 1})
    session.num_seconds = 0.0
    session.run("late", dict)
    found = [(row["check"], row["status"], row.get("problem", "")) for row in session.rows]
    assert [status for _, status, _ in found] == ["failed", "failed", "ok", "no time"]
    assert "ZeroDivisionError" in found[0][2]
    assert session.rows[2]["number"] == 1


@pytest.mark.slow
def test_without_a_gpu_nothing_is_checked(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not (tmp_path / "gpu.json").exists()
