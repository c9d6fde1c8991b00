"""The ranks of a sweep, forked from a process that has imported torch: they are like others."""

import os
import select
import signal
from pathlib import Path

import pytest
from cli_runner import Tahoe

from orchestrator.launch.ranks.rank_servers import _RankServer
from orchestrator.run.outcome import ExitCode
from orchestrator.run.rundir import RunDir
from orchestrator.run.sweepdir import SweepDir

SHORT = ("recipe.steps=6", "recipe.ema_decay=0.9", "model=lenet5_1998", "logging.every_steps=1")


def test_a_server_forks_ranks_until_it_is_killed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config({"no": "config"})
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    server = _RankServer({**os.environ, **dict.fromkeys(names, "0")}, [])
    for attempt in ("1", "2"):
        request = {"run": str(tmp_path), "environ": {"MASTER_PORT": "1", "TAHOE_ATTEMPT": attempt}}
        with (tmp_path / attempt).open("ab") as log, server.fork(request, [log, log]) as rank:
            assert rank.wait() == ExitCode.FAILED_PERMANENTLY
            assert rank.poll() == ExitCode.FAILED_PERMANENTLY
        outcome = run.read_json(run.outcome_file) or {}
        assert outcome["attempt"] == int(attempt)
        assert outcome["reason"] in (tmp_path / attempt).read_text()
    server._process.kill()
    with (tmp_path / "3").open("ab") as log, server.fork(request, [log, log]) as rank:
        rank.send_signal(signal.SIGTERM)
        assert rank.wait() == -signal.SIGKILL
    server.close()
    assert server.has_ended


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_sweep_has_the_bits_of_single_runs(tahoe: Tahoe, digits: Path) -> None:
    """Its points are tracked as others are, and plots are drawn of all of them."""
    data = f"data.url='{digits}'"
    tahoe("train", *SHORT, data, "seed=2", "run_dir=alone", "tracking=none")
    sweep = tahoe("train", "-m", *SHORT, data, "seed=1,2", "logging.plots=false")
    (directory,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    alone, (first, second) = RunDir(tahoe.cwd / "alone"), SweepDir(directory).runs()
    for name in ("model.safetensors", "ema.safetensors"):
        expected, other, found = (
            (run.checkpoints_dir / "step-000000006" / name).read_bytes()
            for run in (alone, first, second)
        )
        assert found == expected, name
        assert other != expected, name
    for run in (first, second):
        log = (run.path / "logs" / "shipper.log").read_text()
        assert log.count("attempt 1: all is shipped") == 1
        with run.lock(wait_s=0):
            pass
    assert "Traceback" not in sweep.stdout + sweep.stderr


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ctrl_c_stops_a_sweep(tahoe: Tahoe, digits: Path) -> None:
    """The point saves, the others do not begin, and no process stays behind."""
    long = ("recipe.steps=100000", "logging.every_steps=1", "tracking=none")
    started = tahoe.start("train", "-m", *long, f"data.url='{digits}'", "seed=1,2")
    started.wait_for("step 3/")
    servers = [os.pidfd_open(pid) for pid in started.rank_pids()]
    os.killpg(started.process.pid, signal.SIGINT)
    assert started.finish() == ExitCode.STOPPED, started.output
    (directory,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    first, second = SweepDir(directory).runs()
    outcome = first.read_json(first.outcome_file) or {}
    assert outcome["outcome"] == "stopped"
    assert (first.checkpoints_dir / f"step-{outcome['step']:09}" / "manifest.json").exists()
    assert second.num_attempts == 0
    for server in servers:
        assert select.select([server], [], [], 60)[0]
        os.close(server)
