"""Names of a config are checked before its run is created; ranks do not download weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from timm.optim import list_optimizers

from models import build, external
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.launch.checks import known_names
from orchestrator.launch.checks.known_names import are_known, reject_downloads
from orchestrator.launch.compose import ComposedConfig, compose
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir


def config_of(*arguments: str) -> Config:
    (composed,) = compose(arguments)
    return composed.config


@pytest.fixture
def open_it(values: dict[str, Any], shards: Path, tmp_path: Path) -> Callable[..., None]:
    """Return a function that opens a run of a planned data set."""

    def open_it(*arguments: str) -> None:
        place = (f"data.url='{shards}'", f"runs_dir='{tmp_path / 'runs'}'")
        (composed,) = compose([*place, *arguments])
        create_or_open_run(composed)

    return open_it


def test_names_found_without_torch_are_those_of_the_libraries() -> None:
    assert known_names._models() == set(external.names())
    assert known_names._optimizers() <= set(list_optimizers())
    assert {"sgd", "momentum", "adamw", "lamb"} <= known_names._optimizers()


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        ([], True),
        (["model=timm/resnet50", "recipe=adamw"], True),
        (["model=torchvision/resnet50"], True),
        (["model=timm/resnet81"], False),
        (["model=timm/resnet50.a1_in1k"], False),
        (["model=my.networks:wide"], False),
        (["recipe.optimizer.name=adamm"], False),
        (["+model.kwargs.width=2"], False),
        (["recipe.augment.auto_augment=augmix"], False),
        (["recipe.loss=model"], False),
        (["recipe.num_micro_batches=128"], False),
    ],
)
def test_only_plain_configs_are_known_without_torch(arguments: list[str], plain: bool) -> None:
    assert are_known(config_of(*arguments)) == plain


@pytest.mark.parametrize(
    ("arguments", "key", "remedy"),
    [
        (["model=resnet18", "+model.kwargs.pretrained=true"], "pretrained", "timm/resnet18"),
        (["model=timm/vit_b.x", "+model.kwargs.pretrained_cfg=a"], "_cfg", "timm/vit_b.x"),
        (["model=resnet18", "+model.kwargs.pretrained_cfg_overlay={file: a}"], "_o", "init_from="),
        (["model=resnet18", "+model.kwargs.checkpoint_path=a.pth"], "checkpoint_", "init_from="),
        (["model=torchvision/alexnet", "+model.kwargs.weights=DEFAULT"], "weights", "init_from="),
    ],
)
def test_model_kwargs_that_download_weights_are_refused(
    arguments: list[str], key: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=key) as refused:
        reject_downloads(config_of(*arguments))
    assert remedy in refused.value.hint


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=resnet18", "+model.kwargs.pretrained=false"],
        ["model=my.networks:wide", "+model.kwargs.pretrained=true"],  # yours: yours to know
        ["model=resnet18", "init_from=timm/resnet18"],
    ],
)
def test_other_model_kwargs_are_accepted(arguments: list[str]) -> None:
    reject_downloads(config_of(*arguments))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["model=timm/resnet18", "+model.kwargs.widht=2"], "widht"),
        (["recipe.optimizer.name=adamm"], "adam"),
        (["model=nowhere.networks:wide"], "nowhere"),
        (["model=resnet18", "+model.kwargs.pretrained=true"], "init_from=timm/resnet18"),
        (["model=resnet18", "recipe.loss=model"], "recipe.loss"),
    ],
)
def test_an_unknown_name_is_refused_before_the_run_is_created(
    arguments: list[str], named: str, open_it: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        open_it(*arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_points_of_a_sweep_are_built_once(
    open_it: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("model=timm/resnet18", "+model.kwargs.drop_rate=0.25")
    open_it(*options)
    monkeypatch.setattr("sys.executable", "/nowhere")  # a second process would fail
    open_it(*options, "seed=2", "recipe.optimizer.lr=0.5")
    assert len([*(tmp_path / "runs").iterdir()]) == 2


def test_an_existing_run_is_not_checked_again(
    values: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    values["data"]["url"] = str(shards)
    values["run_dir"] = str(tmp_path / "run")
    run, _ = create_or_open_run(ComposedConfig(parse(values), ()))
    values["model"]["kwargs"] = {"unheard_of": 1}
    run.write_config(values)  # by a Tahoe that did not look
    create_or_open_run(ComposedConfig(parse(values), ()))


@pytest.mark.slow
def test_weights_of_another_network_are_refused_with_both_names(
    values: dict[str, Any], open_it: Callable[..., None], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "r9")
    run.path.mkdir()
    values["model"]["name"] = "resnet9_2018"
    run.write_config(values)
    weights = safetensors.torch.save(
        build("resnet9_2018", num_classes=10, in_channels=1).state_dict()
    )
    store = CheckpointStore.for_run(run, parse(values))
    store.save(1, {"model.safetensors": lambda file: file.write(weights)}, {})
    with pytest.raises(ConfigError) as refused:
        open_it("model=timm/resnet18", f"init_from='{run.path}'")
    message = str(refused.value)
    assert message.startswith(
        f"init_from={run.path} is resnet9_2018, and this run is timm/resnet18: "
    )
    assert len(message) < 500 + len(str(run.path))
    assert not any((tmp_path / "runs").glob("*"))
    open_it("model=resnet9_2018", f"init_from='{run.path}'")
