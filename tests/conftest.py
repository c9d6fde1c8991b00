"""What tests share: a data set of real digits, runs started as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.rundir import RunDir

# Two cores: more threads would make every timing a matter of luck.
os.environ["OMP_NUM_THREADS"] = "1"

DEADLINE_S = 90
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Tahoe:
    """The `tahoe` command in a working directory of its own."""

    cwd: Path

    def __call__(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli", *arguments]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits data set, written once."""
    path = tmp_path_factory.mktemp("data sets") / "digits"
    Tahoe(path.parent)("shard", "digits", str(path))
    return path


@pytest.fixture
def tahoe(tmp_path: Path) -> Tahoe:
    return Tahoe(tmp_path)


Overrides = Sequence[str]


@pytest.fixture
def train(tahoe: Tahoe, digits: Path) -> Callable[..., RunDir]:
    """Train on the digits in a run directory of that name, without MLflow; return it."""

    def run(name: str, *overrides: str) -> RunDir:
        tahoe("train", *train_overrides(digits, name), *overrides)
        return RunDir(tahoe.cwd / name)

    return run


def train_overrides(digits: Path, name: str) -> list[str]:
    return [f"run_dir={name}", f"data.url='{digits}'", "tracking=none"]
