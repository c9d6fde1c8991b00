"""Ranks that another launcher starts: what they refuse, and what torchrun makes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runner import DEADLINE_S, Started, Tahoe
from run_results import figures, weights
from webhook import webhook

from orchestrator.config.parse import parse
from orchestrator.run.outcome import RunOutcome, read_attempts
from orchestrator.run.rundir import RunDir
from orchestrator.training.distributed.world import World
from orchestrator.training.external_attempt import NotBegunError, external_attempt

NUM_STEPS = 30
RUN = (
    *("tracking=none", f"recipe.steps={NUM_STEPS}", "recipe.global_batch_size=64"),
    *("checkpoint.every_steps=10", "logging.every_steps=1", "data.num_workers=0"),
    "runtime.threads_per_rank=1",
)
WORKER = ("-m", "orchestrator.training.worker")


def refused(run: RunDir, world: World) -> int:
    """Return the exit code of ranks whose attempt does not begin."""
    num_attempts = run.num_attempts
    with (
        pytest.raises(NotBegunError) as caught,
        external_attempt(run, parse(run.read_config()), world),
    ):
        pass
    assert run.num_attempts == num_attempts
    return caught.value.exit_code


def test_no_attempt_begins_of_a_run_that_needs_none(
    run: RunDir, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.stop_file.parent.mkdir()
    run.stop_file.touch()
    assert refused(run, world) == 75
    run.stop_file.unlink()
    RunOutcome("failed_permanently", None, "diverged").write(run, run.begin_attempt())
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert refused(run, world) == 93
    assert read_attempts(run)[1]["why"] == "diverged"  # recorded, though it was killed
    RunOutcome("finished", 14, "done").write(run, 1)
    assert refused(run, world) == 0


def test_a_rank_0_that_hung_is_reported_by_the_next(run: RunDir, world: World) -> None:
    attempt = run.begin_attempt()
    run.log_dir(attempt).mkdir(parents=True)
    (run.log_dir(attempt) / "rank-00000.log").write_text("Timeout (0:30:01)!\nThread ...\n")
    run.stop_file.touch()
    with webhook() as hook:
        run.write_config(run.read_config() | {"notify": {"url": hook.url}})
        assert refused(run, world) == 75
    assert [(event["event"], event["attempt"]) for *_, event in hook.posts] == [("stalled", 1)]
    assert read_attempts(run)[1]["lost"]


def test_an_attempt_is_refused_while_another_holds_the_run(
    run: RunDir,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("orchestrator.training.external_attempt._LOCK_WAIT_S", 0.1)
    with run.lock():
        assert refused(run, world) == 1
    (error,) = caplog.messages
    assert str(os.getpid()) in error  # its holder


def test_ranks_that_do_not_fit_are_refused_without_an_attempt(run: RunDir, world: World) -> None:
    config = run.read_config()
    run.write_config(config | {"recipe": config["recipe"] | {"global_batch_size": 7}})
    assert refused(run, world) == 93
    assert not run.outcome_file.exists()  # on other ranks it can be trained


def test_a_rank_without_names_says_so(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "RANK"}
    command = [sys.executable, *WORKER, str(tmp_path)]
    done = subprocess.run(
        command, env=environ, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert done.returncode == 93
    assert "RANK" in done.stderr


def create(tahoe: Tahoe, digits: Path, name: str, *overrides: str) -> RunDir:
    done = tahoe("create", f"run_dir={name}", f"data.url='{digits}'", *RUN, *overrides)
    assert done.stdout == f"{tahoe.cwd / name}\n"
    return RunDir(tahoe.cwd / name)


def test_any_launcher_that_sets_the_names_trains_a_run(tahoe: Tahoe, digits: Path) -> None:
    run = create(tahoe, digits, "a run", "recipe.steps=3", "notify.command='cat >>events'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environ = os.environ | names | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    del environ["OMP_NUM_THREADS"]
    done = subprocess.run(
        [sys.executable, *WORKER, "a run"],
        cwd=tahoe.cwd,
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0
    attempt = read_attempts(run)[1]
    assert (attempt["launcher"], attempt["world_size"], attempt["num_steps"]) == ("external", 1, 3)
    assert (attempt["nodes"], attempt["exit_code"]) == (socket.gethostname(), 0)
    assert json.loads((tahoe.cwd / "events").read_text())["event"] == "finished"
    log = (run.log_dir(1) / "rank-00000.log").read_text()
    assert "step 3/3" in log
    assert log in done.stdout


@contextmanager
def torchrun(tahoe: Tahoe, run: RunDir, *options: str) -> Iterator[Started]:
    """Start two ranks of a run with torchrun on this machine."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", *options)
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, *WORKER, str(run.path)],
        cwd=tahoe.cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Started(process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.slow
def test_a_rank_killed_under_torchrun_costs_an_attempt_and_no_bit(
    tahoe: Tahoe, digits: Path
) -> None:
    where = (f"data.url='{digits}'", "run_dir=undisturbed", "launcher.nproc_per_node=2")
    tahoe("train", *RUN, *where)
    undisturbed = RunDir(tahoe.cwd / "undisturbed")
    run = create(tahoe, digits, "killed", "launcher.nproc_per_node=2")
    with torchrun(tahoe, run, "--max-restarts=1") as ranks:
        ranks.wait_for("step 14/")
        os.kill(ranks.rank_pids()[0], signal.SIGKILL)
        assert ranks.finish() == 0
    assert weights(run, NUM_STEPS) == weights(undisturbed, NUM_STEPS)
    assert figures(run, "train/loss") == figures(undisturbed, "train/loss")
    first, second = read_attempts(run).values()
    assert first["lost"] or first["exit_code"] == 1
    assert (second["exit_code"], second["launcher"]) == (0, "torchrun")


@pytest.mark.slow
def test_torchrun_that_is_terminated_leaves_a_saved_run(tahoe: Tahoe, digits: Path) -> None:
    run = create(tahoe, digits, "stopped", "recipe.steps=100000", "launcher.nproc_per_node=2")
    with torchrun(tahoe, run, "--max-restarts=1") as ranks:
        ranks.wait_for("step 3/")
        stopped_s = time.monotonic()
        ranks.process.send_signal(signal.SIGTERM)
        ranks.finish()
        assert time.monotonic() - stopped_s < 30
    ((_, attempt),) = read_attempts(run).items()
    assert attempt["exit_code"] == 75
    outcome = run.read_json(run.outcome_file) or {}
    assert (run.checkpoints_dir / f"step-{outcome['step']:09d}" / "manifest.json").exists()
