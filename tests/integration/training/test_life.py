"""How attempts end, as the user sees it: Ctrl-C, a killed launcher, a fatal error, more epochs."""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cli_runner import Tahoe
from http_server import serve

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.run.rundir import RunDir, read_json_lines

LONG = ("recipe.steps=100000", "logging.every_steps=1")


def long_run(digits: Path, name: str, *overrides: str) -> list[str]:
    where = (f"run_dir={name}", f"data.url='{digits}'", "tracking=none")
    return ["train", *where, *LONG, *overrides]


def test_ctrl_c_saves_and_prints_the_resume_command(tahoe: Tahoe, digits: Path) -> None:
    started = tahoe.start(*long_run(digits, "a run", "launcher.nproc_per_node=2"))
    started.wait_for("step 3/")
    os.killpg(started.process.pid, signal.SIGINT)  # what a terminal sends
    assert started.finish() == 75
    run = RunDir(tahoe.cwd / "a run")
    outcome = run.read_json(run.outcome_file)
    assert outcome is not None
    assert f"saved at step {outcome['step']}" in started.output
    assert f"tahoe resume '{run.path}'" in started.output
    assert "Traceback" not in started.output


@pytest.mark.slow
def test_checkpoint_of_a_stop_is_evaluated_on_resume(tahoe: Tahoe, digits: Path) -> None:
    evaluated = ("evaluate.every_epochs=0.01", "recipe.schedule.name=constant")  # every step
    started = tahoe.start(*long_run(digits, "run", *evaluated))
    started.wait_for("step 3/")
    started.process.send_signal(signal.SIGINT)
    assert started.finish() == 75
    run = RunDir(tahoe.cwd / "run")
    step = (run.read_json(run.outcome_file) or {})["step"]
    tahoe("resume", "run", f"recipe.steps={step + 1}")
    lines = [line for line in read_json_lines(run.metrics_file) if line["step"] == step]
    (logged,) = [line["metrics"] for line in lines if "val/top1" in line["metrics"]]
    store = CheckpointStore(str(run.checkpoints_dir))
    assert store.manifest(step).metrics == logged
    with store.open(step):
        pass  # and is as it was saved


def test_ctrl_c_while_starting_is_a_stop(tahoe: Tahoe, digits: Path) -> None:
    started = tahoe.start(*long_run(digits, "run"))
    started.wait_for("run directory:")
    while not started.rank_pids():  # the launcher is about to start it
        assert started.process.poll() is None
    started.process.send_signal(signal.SIGINT)
    assert started.finish() == 75
    assert "stopped before training began" in started.output


def damage(split: Path, num_samples: int) -> None:
    """Overwrite images of a split with zeros, where they lie."""
    shard = min(split.glob("*.tar"))
    with tarfile.open(shard) as tar:
        images = [member for member in tar if member.name.endswith(".png")]
    with shard.open("r+b") as file:
        for member in images[:num_samples]:
            file.seek(member.offset_data)
            file.write(bytes(member.size))


@pytest.mark.parametrize(("num_bad", "code"), [pytest.param(1, 0, marks=pytest.mark.slow), (3, 93)])
def test_max_bad_fraction_is_of_an_epoch(
    tahoe: Tahoe, digits: Path, num_bad: int, code: int
) -> None:
    """A single one is more than the share of the few samples that an attempt has seen at first."""
    url = tahoe.cwd / "digits"
    shutil.copytree(digits, url)
    damage(url / "train", num_bad)
    which = ("recipe.epochs=1", "recipe.global_batch_size=32", "data.max_bad_fraction=0.001")
    where = ("run_dir=run", f"data.url='{url}'", "tracking=none", "logging.every_steps=1")
    done = tahoe("train", *where, *which, check=False)
    assert done.returncode == code
    log = (tahoe.cwd / "run" / "logs" / "attempt-0001" / "rank-00000.log").read_text()
    assert "replaced by the next readable sample" in log
    assert ("max_bad_fraction=0.001" in done.stderr) == bool(code)


@pytest.mark.slow
def test_step_is_saved_if_its_evaluation_fails(tahoe: Tahoe, digits: Path) -> None:
    url = tahoe.cwd / "digits"
    shutil.copytree(digits, url)
    damage(url / "val", 30)
    where = ("run_dir=run", f"data.url='{url}'", "tracking=none", "recipe.steps=3")
    done = tahoe("train", *where, check=False)
    assert done.returncode == 93
    assert "30 samples could not be read" in done.stderr
    assert CheckpointStore(str(tahoe.cwd / "run" / "checkpoints")).steps() == [3]
    refused = tahoe("evaluate", "run", check=False)
    assert refused.returncode == 1
    assert "30 samples could not be read" in refused.stderr
    assert "30 could not be read" in tahoe("evaluate", "run", "--max-bad-fraction", "0.1").stdout


@pytest.mark.slow
def test_unavailable_data_cost_no_step(tahoe: Tahoe) -> None:
    """Keys that have expired: what is trained is saved, and nothing says that the run is over."""
    tahoe("shard", "digits", "set", "--samples-per-shard", "120")
    how = (
        "recipe.epochs=1",
        "data.num_lanes=2",
        "data.shuffle_block_size=64",
        "launcher.nproc_per_node=2",
    )
    batch = ("recipe.global_batch_size=32", "recipe.num_micro_batches=2", "logging.every_steps=1")
    where = ("run_dir=run", "tracking=none", "data.num_workers=1")
    seldom = ("checkpoint.every_steps=1000", f"data.cache.dir={tahoe.cwd / 'cache'}")
    run, saved = RunDir(tahoe.cwd / "run"), []
    with serve(tahoe.cwd) as web:
        command = ["train", f"data.url={web.url}/set", *how, *batch, *where, *seldom]
        for refused in ("train/shard-000009.tar", "val/shard-000000.tar"):
            web.answer = partial(_status, refused)
            done = tahoe(*command, check=False)
            assert done.returncode == 1
            assert "not allowed to read" in done.stderr
            assert run.read_json(run.outcome_file) is None
            saved += CheckpointStore(str(run.checkpoints_dir)).steps()[-1:]
            assert saved[-1] == [*read_json_lines(run.metrics_file)][-1]["step"]
            command = ["resume", "run"]
        web.answer = partial(_status, "none")
        tahoe("resume", "run")
    steps = [r["step"] for r in read_json_lines(run.metrics_file) if "train/loss" in r["metrics"]]
    assert steps == list(range(1, 1 + saved[-1]))  # none was made twice
    assert 0 < saved[0] < saved[1]


def _status(refused: str, path: str) -> int:
    return 403 if refused in path else 0


@pytest.mark.long
@pytest.mark.slow
def test_second_ctrl_c_quits_and_stop_file_stops(tahoe: Tahoe, digits: Path) -> None:
    run = RunDir(tahoe.cwd / "run")
    started = tahoe.start(*long_run(digits, "run", "checkpoint.every_steps=2"))
    started.wait_for("saved step 2 ")
    pids = started.rank_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # a rank that hangs would never come to save
    started.process.send_signal(signal.SIGINT)
    started.wait_for("Ctrl-C again quits")
    started.process.send_signal(signal.SIGINT)
    assert started.finish() == 130
    assert "quit without saving" in started.output
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)

    resumed = tahoe.start("resume", "run")
    resumed.wait_for("continuing after step")
    busy = tahoe("resume", "run", check=False)
    assert busy.returncode == 1
    assert f"process {resumed.process.pid}" in busy.stderr
    run.stop_file.parent.mkdir(exist_ok=True)
    run.stop_file.touch()
    assert resumed.finish() == 75


@pytest.mark.slow
def test_ranks_save_and_stop_when_their_launcher_is_killed(tahoe: Tahoe, digits: Path) -> None:
    started = tahoe.start(*long_run(digits, "run"))
    started.wait_for("step 3/")
    (pid,) = started.rank_pids()
    rank = os.pidfd_open(pid)
    started.process.kill()
    started.finish()
    ended, _, _ = select.select([rank], [], [], 60)
    os.close(rank)
    assert ended, "the rank outlived its launcher by a minute"
    run = RunDir(tahoe.cwd / "run")
    outcome = run.read_json(run.outcome_file)
    assert outcome is not None
    assert outcome["outcome"] == "stopped"


@pytest.mark.slow
def test_a_stopped_rank_does_not_wait_for_a_dead_server(tahoe: Tahoe, digits: Path) -> None:
    """Slurm kills a job half a minute after a preemption, saved or not (KillWait)."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        started = tahoe.start(
            *long_run(digits, "run"), uri, "tracking.enabled=true", "tracking.flush_timeout_s=300"
        )
        started.wait_for("step 3/")
        started.process.send_signal(signal.SIGINT)
        started.wait_for("saved step")
        saved_s = time.monotonic()
        assert started.finish() == 75
    assert time.monotonic() - saved_s < 30
    assert "tahoe sync" in started.output


@pytest.mark.slow
def test_diverged_run_is_not_saved_and_never_restarted(tahoe: Tahoe, digits: Path) -> None:
    done = tahoe(*long_run(digits, "run", "recipe.optimizer.lr=1e30"), check=False)
    assert done.returncode == 93
    assert "diverged: the loss became nan between steps" in done.stderr
    assert "Lower recipe.optimizer.lr" in done.stderr
    assert not (tahoe.cwd / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_misspelt_model_lists_similar_names(tahoe: Tahoe, digits: Path) -> None:
    done = tahoe(*long_run(digits, "run", "model=timm/resnet81"), check=False)
    assert done.returncode == 93
    assert "timm/resnet18" in done.stderr
    assert done.stdout == ""  # told once
    assert not (tahoe.cwd / "run").exists()


@pytest.mark.slow
def test_invalid_frozen_config_is_never_restarted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: x")
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    names = {"TAHOE_ATTEMPT": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.training.worker", str(tmp_path)],
        env=os.environ | ranks | names,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 93
    assert "Traceback" not in done.stdout + done.stderr
    outcome = RunDir(tmp_path).read_json(RunDir(tmp_path).outcome_file)
    assert outcome is not None
    assert outcome["outcome"] == "failed_permanently"
    assert "seed" in outcome["reason"]


@pytest.mark.slow
def test_a_finished_run_can_be_extended(train: Callable[..., RunDir], tahoe: Tahoe) -> None:
    run = train("run", "recipe.steps=5", "logging.every_steps=1")
    tahoe("resume", "run", "recipe.steps=8", "--schedule", "restart")
    steps = [r["step"] for r in read_json_lines(run.metrics_file) if "train/loss" in r["metrics"]]
    assert steps == list(range(1, 9))
    outcome = run.read_json(run.outcome_file)
    assert outcome is not None
    assert (outcome["outcome"], outcome["step"]) == ("finished", 8)
    assert run.read_config()["recipe"]["steps"] == 8
