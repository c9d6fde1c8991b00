"""Networks that begin with the weights of others."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.training.distributed.world import World
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.task.warm_start import check_unchanged, load_initial_weights

VIT = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def vit(
    *, img_size: int = 16, num_classes: int = 10, in_chans: int = 3, seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    network: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=img_size,
        num_classes=num_classes,
        in_chans=in_chans,
        **VIT,
    )
    return network


def saved(network: nn.Module, directory: Path) -> Path:
    file = directory / "weights.safetensors"
    safetensors.torch.save_model(network, str(file))
    return file


def changed(before: dict[str, torch.Tensor], after: nn.Module) -> set[str]:
    return {name for name, value in after.state_dict().items() if not value.equal(before[name])}


def test_the_same_network_takes_everything(tmp_path: Path) -> None:
    source, target = vit(), vit(seed=1)
    load_initial_weights(target, saved(source, tmp_path), 10, 3)
    assert changed(source.state_dict(), target) == set()


@pytest.mark.parametrize("num_source", [10, 0])  # 0: pretrained without labels, so without a head
def test_another_number_of_classes_keeps_a_fresh_head(tmp_path: Path, num_source: int) -> None:
    source, target = vit(num_classes=num_source), vit(num_classes=7, seed=1)
    head = target.state_dict()["head.weight"].clone()
    load_initial_weights(target, saved(source, tmp_path), 7, 3)
    ours = target.state_dict()
    assert ours["head.weight"].equal(head)
    body = {name: value for name, value in source.state_dict().items() if "head" not in name}
    assert all(ours[name].equal(value) for name, value in body.items())


def test_position_embeddings_and_channels_are_adapted(tmp_path: Path) -> None:
    source, target = vit(), vit(img_size=32, in_chans=1, seed=1)
    load_initial_weights(target, saved(source, tmp_path), 10, 1)
    theirs, ours = source.state_dict(), target.state_dict()
    assert ours["pos_embed"].shape != theirs["pos_embed"].shape
    grid = ours["pos_embed"][:, 1:].reshape(8, 8, 16).permute(2, 0, 1)[None]
    coarse = theirs["pos_embed"][:, 1:].reshape(4, 4, 16).permute(2, 0, 1)[None]
    assert (nn.functional.avg_pool2d(grid, 2) - coarse).abs().mean() < 0.5 * coarse.abs().mean()
    rgb = theirs["patch_embed.proj.weight"]
    assert torch.allclose(ours["patch_embed.proj.weight"], rgb.sum(1, keepdim=True))


def test_a_network_of_one_s_own_takes_another_head(tmp_path: Path) -> None:
    def build(num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, num_classes))

    source, target = build(5), build(3)
    head = target[2].weight.clone()  # type: ignore[index, union-attr, operator]
    load_initial_weights(target, saved(source, tmp_path), 3, 3)
    assert torch.equal(target[0].weight, source[0].weight)  # type: ignore[index, arg-type]
    assert torch.equal(target[2].weight, head)  # type: ignore[index, arg-type]


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(3, 3),
        timm.create_model("resnet18", num_classes=3),
        vit(num_classes=3).blocks,  # type: ignore[attr-defined]
    ],
)
@pytest.mark.parametrize("target", [vit(), nn.Sequential(nn.Linear(8, 10))])
def test_weights_of_another_network_are_refused(
    tmp_path: Path, other: nn.Module, target: nn.Module
) -> None:
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(ConfigError, match="init_from") as refused:
        load_initial_weights(target, saved(other, tmp_path), 10, 3)
    assert len(str(refused.value)) < 500
    assert changed(before, target) == set()


def test_the_average_begins_there_too(tmp_path: Path, config: Config, world: World) -> None:
    averaged = replace(config, recipe=replace(config.recipe, ema_decay=0.9))
    state = TrainState.create(vit(seed=1), averaged, world)
    source = vit()
    state.initialise(saved(source, tmp_path), 10, 3)
    assert state.ema is not None
    assert changed(source.state_dict(), state.ema) == set()


def test_layers_learn_the_slower_the_deeper_they_lie(config: Config, world: World) -> None:
    optimizer = replace(config.recipe.optimizer, layer_decay=0.5)
    decayed = replace(config, recipe=replace(config.recipe, optimizer=optimizer))
    state = TrainState.create(vit(), decayed, world)
    names = {id(param): name for name, param in state.model.named_parameters()}
    scales = {
        names[id(param)]: group["lr_scale"]
        for group in state.optimizer.param_groups
        for param in group["params"]
    }
    assert scales["head.weight"] == 1
    assert scales["blocks.1.mlp.fc1.weight"] == 0.5
    assert scales["blocks.0.mlp.fc1.weight"] == 0.25
    assert scales["patch_embed.proj.weight"] == 0.125


def test_weights_that_were_changed_since_the_run_was_made_are_refused(
    tmp_path: Path, config: Config
) -> None:
    run = RunDir(tmp_path)
    run.init_file.write_bytes(b"weights")
    run.write_json(run.identity_file, {"init_from": {"sha256": sha256(b"weights").hexdigest()}})
    check_unchanged(run, config)
    run.init_file.write_bytes(b"another")
    with pytest.raises(RunError) as refused:
        check_unchanged(run, config)
    assert refused.value.value == sha256(b"another").hexdigest()
    run.init_file.unlink()
    with pytest.raises(RunError, match="no file"):
        check_unchanged(run, config)
