"""What tests share: a data set of digits, `tahoe` in a directory of its own, an S3 server."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from cli_runner import Tahoe
from s3_server import S3, serve

from orchestrator.run.rundir import RunDir

# Two cores: more threads would make every timing a matter of luck.
os.environ["OMP_NUM_THREADS"] = "1"
# A suite that a script starts in the background would ignore Ctrl-C, and so would `tahoe`.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A machine that is busy is no fault of an example.
hypothesis.settings.register_profile("tahoe", deadline=None)
hypothesis.settings.load_profile("tahoe")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing may be skipped: a skip there means that CI lacks what the test needs."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report


@pytest.fixture
def tahoe(tmp_path: Path) -> Tahoe:
    return Tahoe(tmp_path)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the digits data set, written once; it has a space in it."""
    path = tmp_path_factory.mktemp("data sets") / "digits"
    Tahoe(path.parent)("shard", "digits", str(path))
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """Return a running server, perhaps with the faults and objects of the test before."""
    with serve() as server:
        yield server


@pytest.fixture
def train(tahoe: Tahoe, digits: Path) -> Callable[..., RunDir]:
    """Train on the digits in a run directory of that name, without MLflow; return it."""

    def run(name: str, *overrides: str) -> RunDir:
        tahoe("train", f"run_dir={name}", f"data.url='{digits}'", "tracking=none", *overrides)
        return RunDir(tahoe.cwd / name)

    return run
