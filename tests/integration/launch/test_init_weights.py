"""Weights are brought into the run directory, wherever they come from."""

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from cli_runner import Tahoe

from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError
from orchestrator.launch.init_weights import fetch_initial_weights
from orchestrator.run.rundir import RunDir


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "some weights.safetensors"
    safetensors.torch.save_file({"a": torch.ones(3)}, str(file))
    return file


def test_a_user_file_may_be_overwritten_afterwards(weights: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "init.safetensors", tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, str(other))
    facts = fetch_initial_weights(str(weights), target)
    shutil.copyfile(other, weights)  # where it lies, as `cp` does
    assert sha256(target.read_bytes()).hexdigest() == facts["sha256"]


def test_a_checkpoint_is_linked(weights: Path, tmp_path: Path) -> None:
    target, store = tmp_path / "init.safetensors", CheckpointStore(str(tmp_path / "checkpoints"))
    store.save(1, {"model.safetensors": lambda file: file.write(weights.read_bytes())}, {})
    fetch_initial_weights(store.location(1), target)
    assert target.samefile(Path(store.location(1)) / "model.safetensors")


def test_a_file_is_copied_or_fetched(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "init.safetensors"
    facts = fetch_initial_weights(str(weights), target)
    assert facts["sha256"] == sha256(weights.read_bytes()).hexdigest()
    assert facts["num_tensors"] == 1
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shelf/w.safetensors", weights.read_bytes())
    target.unlink()
    assert (
        fetch_initial_weights("memory://shelf/w.safetensors", target)["sha256"] == facts["sha256"]
    )
    memory.rm("/", recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "FileNotFoundError"),
        ("odd://x", "Protocol not known: odd"),
        ("memory://nothing", "FileNotFoundError"),
        ("pickle.pt", "is no safetensors file"),
        ("timm/no_such_network", "timm has no such pretrained weights"),
        ("timm/resnet18.no_such_tag", "timm has no such pretrained weights"),
        ("empty run", "no checkpoint yet"),
        ("broken/step-000000001", "cannot be read"),
        ("empty/step-000000001", "has no ema.safetensors"),
    ],
)
def test_missing_or_invalid_weights_are_refused(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_config: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(3)}, "pickle.pt")
    Path("empty run").mkdir()
    Path("empty run", "config.yaml").write_text(train_config)
    Path("broken/step-000000001").mkdir(parents=True)
    Path("broken/step-000000001/manifest.json").write_text("{")
    CheckpointStore("empty").save(1, {}, {})
    with pytest.raises(ConfigError, match="init_from") as refused:
        fetch_initial_weights(source, tmp_path / "init.safetensors")
    assert said in str(refused.value)


@pytest.mark.long
@pytest.mark.slow
def test_pretrained_weights_need_internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"init_from=timm/resnet18\.a1_in1k: its weights cannot"):
        fetch_initial_weights("timm/resnet18.a1_in1k", tmp_path / "init.safetensors")


@pytest.fixture
def train_config(values: dict[str, object]) -> str:
    return json.dumps(values)  # which is YAML too


@pytest.mark.slow
def test_a_run_begins_with_the_best_of_another(
    train: Callable[..., RunDir], tahoe: Tahoe, digits: Path
) -> None:
    still = ("recipe.steps=1", "recipe.optimizer.lr=1e-12")
    first = train("first", "recipe=adamw", "recipe.steps=40", "recipe.ema_decay=0.5")
    second = train("second", *still, "init_from=first")
    best = first.checkpoints_dir / "step-000000040" / "ema.safetensors"
    assert second.init_file.read_bytes() == best.read_bytes()
    identity = second.read_json(second.identity_file)
    assert identity is not None
    assert identity["init_from"]["run"] == "first"
    assert identity["init_from"]["step"] == 40
    text = (second.log_dir(1) / "rank-00000.log").read_text()
    assert "init_from; fresh: nothing" in text
    assert f"starting from the weights of {identity['init_from']['source']}" in text
    assert "from scratch" not in text
    assert re.search(r"first step after .*imports .*rendezvous .*checkpoint .*first step", text)
    assert val_loss(second) == pytest.approx(val_loss(first), rel=1e-4)
    assert val_loss(train("fresh", *still)) > 1.1 * val_loss(first)

    lost = tahoe(*("train", f"data.url='{digits}'", "init_from=gone", "run_dir=lost"), check=False)
    assert lost.returncode == 93
    assert "init_from=gone cannot be read" in lost.stderr
    assert not (tahoe.cwd / "lost").exists()
    refused = tahoe("resume", "second", "init_from=null", "recipe.steps=3", check=False)
    assert "init_from cannot change within a run" in refused.stderr

    shutil.rmtree(second.checkpoints_dir)  # so that it begins again
    second.init_file.unlink()
    (first.checkpoints_dir / "step-000000040" / "model.safetensors").rename(second.init_file)
    changed = tahoe("resume", "second", "recipe.steps=3", "--schedule", "restart", check=False)
    assert changed.returncode == 93
    assert identity["init_from"]["sha256"] in changed.stderr
    assert not second.checkpoints_dir.exists()


def val_loss(run: RunDir) -> float:
    records = map(json.loads, run.metrics_file.read_text().splitlines())
    return [one["metrics"]["val/loss"] for one in records if "val/loss" in one["metrics"]][-1]
