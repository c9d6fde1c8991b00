"""`tahoe ckpt` on a run that was trained for it."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from cli_runner import Tahoe

import models
from orchestrator.run.rundir import RunDir

pytestmark = pytest.mark.slow  # a run is trained for them


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """Train 12 steps and keep those of 3, 6, 9 and 12."""
    home = tmp_path_factory.mktemp("trained")
    often = ("checkpoint.every_steps=3", "checkpoint.keep_every_steps=3", "tracking=none")
    small = ("recipe.steps=12", "recipe.ema_decay=0.5", "recipe.global_batch_size=64")
    Tahoe(home)("train", "run_dir=run", f"data.url='{digits}'", *often, *small)
    return home / "run"


@pytest.fixture
def run(trained: Path, tahoe: Tahoe) -> RunDir:
    """Return a copy of that run."""
    return RunDir(shutil.copytree(trained, tahoe.cwd / "run"))


def damage(run: RunDir, step: int, name: str) -> None:
    file = run.checkpoints_dir / f"step-{step:09d}" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_listing(tahoe: Tahoe, run: RunDir) -> None:
    listed = json.loads(tahoe("ckpt", "ls", "run", "--json").stdout)
    roles = {one["step"]: one["kept_as"] for one in listed}
    assert roles == {3: "every n-th", 6: "every n-th", 9: "last", 12: "last, best"}
    assert listed[-1]["metrics"].keys() == {"val/top1", "val/top5", "val/loss"}
    place = tahoe.cwd / listed[0]["url"]
    size = sum(f.stat().st_size for f in place.iterdir())
    assert listed[0]["num_bytes"] == size - (place / "manifest.json").stat().st_size
    assert "last, best  " in tahoe("ckpt", "ls", "run").stdout
    lost = tahoe("ckpt", "ls", "elsewhere", check=False)
    assert lost.returncode == 1
    assert "no run at elsewhere" in lost.stderr


def test_damage_is_found_and_nothing_is_changed(tahoe: Tahoe, run: RunDir) -> None:
    assert tahoe("ckpt", "verify", "run").stdout.count("as they were saved") == 4
    damage(run, 9, "ema.safetensors")
    done = tahoe("ckpt", "verify", "run", check=False)
    assert done.returncode == 1
    assert "step 9: DAMAGED" in done.stdout
    assert done.stdout.count("as they were saved") == 3
    assert tahoe("ckpt", "verify", "run", "--step", "12").returncode == 0
    assert "step-000000009/ema.safetensors is damaged" in done.stdout


def test_pruning(tahoe: Tahoe, run: RunDir) -> None:
    longer = ("recipe.steps=13", "--schedule", "stretch")
    tahoe("resume", "run", "checkpoint.keep_every_steps=null", *longer)
    assert "removed: none" in tahoe("ckpt", "prune", "run").stdout  # the run has done it
    before = sorted(path.name for path in run.checkpoints_dir.iterdir())
    assert tahoe("ckpt", "prune", "run", "--keep-last", "1", check=False).returncode == 2
    with run.lock():
        busy = tahoe("ckpt", "prune", "run", check=False)
    assert busy.returncode == 1
    assert "an attempt of run is running" in busy.stderr
    assert sorted(path.name for path in run.checkpoints_dir.iterdir()) == before


def test_pruning_harder_and_looking_before(tahoe: Tahoe, run: RunDir) -> None:
    config = run.read_config()
    config["checkpoint"] |= {"keep_every_steps": None, "keep_best": None}
    run.write_config(config)
    assert "would be removed: 3, 6" in tahoe("ckpt", "prune", "run", "--dry-run").stdout
    assert len(list(run.checkpoints_dir.iterdir())) == 4
    assert "removed: 3, 6" in tahoe("ckpt", "prune", "run").stdout
    assert len(list(run.checkpoints_dir.iterdir())) == 2


def test_what_is_exported_is_loaded_without_tahoe(tahoe: Tahoe, run: RunDir) -> None:
    said = tahoe("ckpt", "export", "run", "memory.safetensors").stdout
    assert said.startswith("ema.safetensors of step 12")
    tahoe("ckpt", "export", "run", "raw.safetensors", "--weights", "raw", "--step", "6")
    network = models.build("lenet5_1998", num_classes=10, in_channels=1)
    for name, source in (("memory", "12/ema"), ("raw", "06/model")):
        file = tahoe.cwd / f"{name}.safetensors"
        network.load_state_dict(safetensors.torch.load_file(file), strict=True)
        saved = run.checkpoints_dir / f"step-0000000{source}.safetensors"
        assert file.read_bytes() == saved.read_bytes()
    again = tahoe("ckpt", "export", "run", "raw.safetensors", check=False)
    assert again.returncode == 1
    assert "raw.safetensors exists" in again.stderr
    missing = tahoe("ckpt", "export", "run", "x", "--step", "7", check=False)
    assert "no checkpoint of step 7" in missing.stderr
    assert "3, 6, 9, 12" in missing.stderr


def test_weights_that_are_damaged_are_not_exported(tahoe: Tahoe, run: RunDir) -> None:
    damage(run, 12, "ema.safetensors")
    done = tahoe("ckpt", "export", "run", "out.safetensors", check=False)
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert not (tahoe.cwd / "out.safetensors").exists()
