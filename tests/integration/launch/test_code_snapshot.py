"""The code snapshot of a run: the files that git does not ignore, up to a size."""

import subprocess
from pathlib import Path

import pytest

from orchestrator.launch.code_snapshot import snapshot_code
from orchestrator.run.rundir import RunDir, RunError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the user's, and the working directory; PYTHONPATH names a part of it."""
    root = tmp_path / "my project"
    (root / "src").mkdir(parents=True)
    (root / "src" / "net.py").write_text("x = 1")
    (root / "data.bin").write_bytes(bytes(2_000_000))
    (root / ".gitignore").write_text("*.bin")
    subprocess.run(["git", "init", "--quiet", root], check=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", f"src:{tmp_path / 'elsewhere'}")
    return root


def test_files_that_git_does_not_ignore_are_copied_and_come_first(
    project: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    src, elsewhere, *tahoe = map(Path, snapshot_code(run, max_mb=100))
    assert src.is_relative_to(run.code_dir)
    assert (src / "net.py").read_text() == "x = 1"
    assert not (src.parent / "data.bin").exists()
    assert elsewhere == tmp_path / "elsewhere"
    for root in tahoe:  # Tahoe's own checkout, where it is one
        assert (root / "orchestrator" / "cli" / "main.py").exists()
    (project / "src" / "net.py").write_text("x = 2")
    assert (src / "net.py").read_text() == "x = 1"
    (src / "gone.py").write_text("")  # as if it had been there the time before
    snapshot_code(run, max_mb=100)
    assert not (src / "gone.py").exists()
    assert (src / "net.py").read_text() == "x = 2"  # a new submit takes the code as it is then


def test_a_checkout_that_is_too_large_is_refused(project: Path, tmp_path: Path) -> None:
    (project / "weights.pt").write_bytes(bytes(9_000_000))
    with pytest.raises(RunError, match=r"weights\.pt") as refused:
        snapshot_code(RunDir(tmp_path / "run"), max_mb=8.5)
    assert refused.value.value == project
    assert "slurm.code_snapshot_max_mb" in refused.value.hint


def test_a_removed_file_is_skipped(project: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "add", "src/net.py"], check=True)
    (project / "src" / "net.py").unlink()
    (project / "src" / "other.py").write_text("")
    src, *_ = snapshot_code(RunDir(tmp_path / "run"), max_mb=100)
    assert [path.name for path in Path(src).iterdir()] == ["other.py"]
