"""Plain package names are safe: nobody else ships them, and a foreign one is not taken for ours."""

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

from orchestrator.import_guard import PACKAGES, check_not_shadowed

REPOSITORY = Path(__file__).resolve().parents[3]


def test_ours_are_where_they_belong() -> None:
    check_not_shadowed()
    assert {*PACKAGES} == {file.parent.name for file in REPOSITORY.glob("*/__init__.py")}


@pytest.mark.parametrize("name", ["models", "slurm"])
def test_a_foreign_package_stops_the_program(name: str, tmp_path: Path) -> None:
    foreign = tmp_path / name / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("raise SystemExit('the foreign one was run')")
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    command = [sys.executable, "-P", "-m", "orchestrator.cli.main", "--help"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: Tahoe's package '{name}' is shadowed: found {foreign}, ")
    assert f"expected {REPOSITORY / name / '__init__.py'}. " in last
    assert "PYTHONPATH" in last
    assert "virtual environment" in last


def test_nobody_else_ships_a_package_of_that_name() -> None:
    owners = packages_distributions()
    assert {owner for name in PACKAGES for owner in owners.get(name, ())} <= {"tahoe-orchestrator"}


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; pip install hatchling")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=REPOSITORY, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        packed = {Path(name) for name in archive.namelist()}
    info = {path for path in packed if path.parts[0].endswith(".dist-info")}
    assert {path.parts[0] for path in packed - info} == {*PACKAGES}
    assert any(path.name == "LICENSE" for path in info)
    for suffix in ("py", "yaml"):
        tree = {path for name in PACKAGES for path in (REPOSITORY / name).rglob(f"*.{suffix}")}
        assert {path.relative_to(REPOSITORY) for path in tree} <= packed
