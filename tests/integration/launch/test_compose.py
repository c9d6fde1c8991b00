"""The command line becomes configs with absolute paths, and leaves nothing else behind."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.parse import ConfigError, parse, to_dict
from orchestrator.config.recipe import ProgressiveResize
from orchestrator.config.schema import Cache, Config
from orchestrator.launch.compose import absolute, compose, merge


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run each test in an empty directory, with a space in its name."""
    path = tmp_path / "my work"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def config_of(*arguments: str) -> Config:
    (composed,) = compose(arguments)
    return composed.config


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as refused:
        compose(arguments)
    return str(refused.value)


@pytest.mark.parametrize(
    ("choice", "base"),
    [
        ("timm/resnet18", "timm"),
        ("timm/resnet50.a1_in1k", "timm"),
        ("torchvision/vit_b_16", "torchvision"),
        ("my_package.networks:build_it", "custom"),
    ],
)
def test_a_model_without_a_file_is_chosen_by_its_name(choice: str, base: str) -> None:
    assert config_of(f"model={choice}") == config_of(f"model={base}", f"model.name={choice}")


@pytest.mark.parametrize(
    "choices",
    [
        "timm/resnet18,lenet5_1998,'torchvision/alexnet',\"a.b:c\"",
        "choice(timm/resnet18, lenet5_1998, torchvision/alexnet, a.b:c)",
    ],
)
def test_a_sweep_mixes_named_models_with_files(choices: str) -> None:
    points = compose(["-m", f"model={choices}", "seed=3"])
    models = [point.config.model for point in points]
    names = ["timm/resnet18", "lenet5_1998", "torchvision/alexnet", "a.b:c"]
    assert [model.name for model in models] == names
    assert [model.published is None for model in models] == [True, False, True, True]
    assert points[1].overrides == ("model=lenet5_1998", "seed=3")


@pytest.mark.parametrize("duration", ["epochs=3", "images=512", "steps=7"])
def test_a_given_duration_replaces_that_of_the_recipe(duration: str) -> None:
    recipe = config_of(f"recipe.{duration}").recipe
    given = {"epochs": recipe.epochs, "images": recipe.images, "steps": recipe.steps}
    name, _, number = duration.partition("=")
    assert given == {"epochs": None, "images": None, "steps": None} | {name: int(number)}


def test_two_given_durations_are_refused() -> None:
    assert "one of epochs, images, steps" in refusal("recipe.steps=2", "recipe.images=512")


def test_each_point_of_a_sweep_has_its_duration() -> None:
    points = compose(["-m", "recipe.steps=2,3"])
    assert [(p.config.recipe.steps, p.config.recipe.epochs) for p in points] == [
        (2, None),
        (3, None),
    ]


def test_paths_become_absolute(cwd: Path) -> None:
    config = config_of("data.url=a set", "run_dir=../runs/1", "checkpoint.url=ckpt", "runs_dir=r")
    assert config.data.url == f"{cwd}/a set"
    assert config.run_dir == f"{cwd}/../runs/1"
    assert config.runs_dir == f"{cwd}/r"
    assert config.checkpoint.url == f"{cwd}/ckpt"
    assert config.tracking.uri == f"sqlite:///{cwd}/mlflow.db"


@pytest.mark.parametrize(
    "url",
    [
        "/data/set",
        "s3://bucket/a set",
        "file:///data/set",
        "simplecache::s3://bucket/set",
        "https://user@mlflow.example.org",
        "sqlite:////var/mlflow.db",
        "postgresql+psycopg2://host/mlflow",
    ],
)
def test_urls_stay_as_they_are(url: str) -> None:
    assert absolute(url) == url


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("~/set") == "/home/me/set"
    assert absolute("sqlite:///~/mlflow.db") == "sqlite:////home/me/mlflow.db"


def test_references_are_resolved_for_each_point(cwd: Path) -> None:
    points = compose(["-m", "seed=5,6", "run_dir=${model.name}-${seed}-${hydra:job.num}"])
    assert [p.config.run_dir for p in points] == [f"{cwd}/lenet5_1998-{i}" for i in ("5-0", "6-1")]


def test_overrides_are_recorded_as_they_were_given() -> None:
    (composed,) = compose(["run_dir=${model.name}", "hydra.verbose=false", "seed=3"])
    assert composed.overrides == ("run_dir=${model.name}", "seed=3")


@pytest.mark.parametrize("arguments", [["seed=1"], ["--multi", "seed=1,2"], ["seed=x"]])
def test_composing_leaves_nothing_behind(
    arguments: list[str], cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", "tahoe train seed=")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    environ, argv, given = dict(os.environ), list(sys.argv), list(arguments)
    try:
        compose(arguments)
    except ConfigError:
        assert arguments == ["seed=x"]
    assert (dict(os.environ), sys.argv, arguments) == (environ, argv, given)
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--cfg", "job", "seed=41"], "seed: 41"),
        (["--cfg", "job", "--package", "recipe.optimizer"], "weight_decay: 0.0005"),
    ],
)
def test_hydra_flags_print_the_config_and_start_nothing(
    arguments: list[str], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose(arguments) == []
    assert printed in capsys.readouterr().out


def test_a_config_dir_adds_models(cwd: Path) -> None:
    (cwd / "mine" / "model").mkdir(parents=True)
    (cwd / "mine" / "model" / "wide.yaml").write_text(
        "defaults: [resnet18, _self_]\nkwargs: {width: 2}\n"
    )
    config = config_of("--config-dir", "mine", "model=wide")
    assert (config.model.name, config.model.kwargs) == ("timm/resnet18", {"width": 2})


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("sede=3", "sede: there is no such key; did you mean 'seed'? valid: seed, strategy, "),
        ("recipe.optimiser.lr=3", "recipe.optimiser: there is no such key; did you mean 'recipe.o"),
        ("recipe.epochs.x=3", "recipe.epochs.x: there is no such key; recipe.epochs is a single"),
        ("slurm.additional_parameters.x=1", "with a plus: +slurm.additional_parameters.x=VALU"),
        ("+recipe.lr=1", "recipe.lr: there is no such key; did you mean 'recipe.optimizer.lr'? va"),
        (
            "recipe.batch_size=1",
            "did you mean 'evaluate.batch_size' or 'recipe.global_batch_size'?",
        ),
        ("zzz=1", "zzz: there is no such key; valid: seed, strategy, "),
        (
            "recipe.progressive_resize.start_size=8",
            "'recipe.progressive_resize={start_size: VALUE, start_epoch: ",
        ),
        ("recipe=adanw", "recipe=adanw: there is no such choice; did you mean 'adamw'? valid: "),
        ("model=lenet", "model=lenet: there is no such choice; did you mean 'lenet5_1998'? valid"),
        ("model=lenet", "timm/NAME, torchvision/NAME, PACKAGE.MODULE:FUNCTION"),
        ("model=timm/", "model=timm/: there is no such choice; did you mean 'timm'?"),
        ("hydra/launcher=nope", "hydra/launcher=nope: there is no such choice; valid: basic"),
        ("data=shards", "no value for data.url, which must be given. Add data.url=VALUE to"),
        ("run_dir=3", "run_dir: 3 is not text; quote it twice"),
        ("run_dir=${nope}", "run_dir: Interpolation key 'nope' not found"),
        ("run_dir=${oc.env:NOPE}", "Environment variable 'NOPE' not found"),
        ("seed", "'seed' is no override. Write KEY=VALUE"),
        ("data=null", "must be a string or a list"),
        ("~data", "data.name: is missing"),
        ("~recipe.epochs", "recipe.epochs: is missing"),
        ("seed=1,2", "add --multirun"),
        ("--resolve", "only be used in conjunction with --cfg"),
    ],
)
def test_invalid_arguments_are_config_errors(argument: str, expected: str) -> None:
    message = refusal(argument)
    assert expected in message
    assert "object_type" not in message


@pytest.mark.parametrize("value", ["r/ü [1]", "a{b", "[", "it's [1]", 'a"$b{', "back\\slash'{"])
def test_the_suggested_quoting_can_be_parsed(value: str, cwd: Path) -> None:
    message = refusal(f"run_dir={value}")
    assert message.startswith("run_dir: ")
    (argument,) = shlex.split(message.rpartition("shell: ")[2])
    assert config_of(argument).run_dir == f"{cwd}/{value}"


def test_the_suggested_section_in_place_of_null_is_valid() -> None:
    message = refusal("recipe.progressive_resize.start_size=8")
    (argument,) = shlex.split(message.rpartition("all of it: ")[2])
    filled = argument.replace("VALUE", "4")
    whole = config_of(filled.replace("end_epoch: 4", "end_epoch: 5"))
    assert whole.recipe.progressive_resize == ProgressiveResize(
        start_size=4, start_epoch=4, end_epoch=5, size_divisor=4
    )


def test_groups_in_conf_of_the_working_directory_are_found(
    cwd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cwd / "conf" / "slurm").mkdir(parents=True)
    (cwd / "conf" / "slurm" / "b100.yaml").write_text(
        "defaults: [default, _self_]\ngpus_per_node: 7\n"
    )
    assert config_of("slurm=b100").slurm.gpus_per_node == 7
    assert capsys.readouterr().err == ""
    (cwd / "conf" / "slurm" / "default.yaml").write_text("gpus_per_node: 7\n")
    assert config_of("slurm=default").slurm.gpus_per_node == 0
    assert "conf/slurm/default.yaml is not used" in capsys.readouterr().err
    (cwd / "other" / "slurm").mkdir(parents=True)
    assert "slurm=b100" in refusal("--config-dir", "other", "slurm=b100")


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("data.cache.dir='${oc.env:TMPDIR,/tmp}/shards'", "$TMPDIR"),
        ("data.url='${oc.env:TMPDIR}/set'", "a path that all nodes see"),
        ("slurm.setup=['cd ${oc.env:SLURM_TMPDIR}']", "a path that all nodes see"),
    ],
)
def test_variables_that_differ_between_nodes_are_not_frozen(
    override: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/of-the-login-node")
    monkeypatch.setenv("SLURM_TMPDIR", "/tmp/of-the-login-node")
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{key}=") as refused:
        compose(["launcher=slurm", override])
    assert remedy in refused.value.hint
    (composed,) = compose([override])  # for this machine it is right
    assert "of-the-login-node" in str(to_dict(composed.config))
    (composed,) = compose(["launcher=slurm", "data.cache.dir=$TMPDIR/shards"])
    assert isinstance(composed.config.data.cache, Cache)
    assert composed.config.data.cache.dir == "$TMPDIR/shards"


def test_all_missing_values_are_named_at_once() -> None:
    assert "Add model.name=VALUE data.url=VALUE to" in refusal("model=timm", "data=shards")


def test_an_invalid_config_file_is_named(cwd: Path) -> None:
    (cwd / "model").mkdir()
    (cwd / "model" / "bad.yaml").write_text("name: [")
    assert str(cwd / "model" / "bad.yaml") in refusal("--config-dir", ".", "model=bad")


@pytest.mark.parametrize(
    "arguments", [["-m", "seed=1,2", "data=digits"], ["seed=1,2", "-m", "data=digits"]]
)
def test_overrides_and_options_come_in_any_order(arguments: list[str]) -> None:
    assert [point.config.seed for point in compose(arguments)] == [1, 2]


def test_one_bad_point_refuses_the_sweep() -> None:
    assert "seed: Input should be a valid integer" in refusal("-m", "seed=1,x")


@pytest.fixture
def frozen(values: dict[str, Any]) -> dict[str, Any]:
    return to_dict(parse(values))


def test_frozen_values_take_overrides(frozen: dict[str, Any], cwd: Path) -> None:
    merged = merge(frozen, ["recipe.steps=9", "data.url=moved", "recipe.optimizer.lr=1e-3"])
    config = parse(merged)
    assert (config.recipe.steps, config.recipe.epochs) == (9, None)
    assert config.data.url == f"{cwd}/moved"
    assert config.recipe.optimizer.lr == 1e-3
    assert parse(merge(frozen, [])) == parse(frozen)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("recipe=adamw", "'recipe=adamw' is not an override of a frozen config.*group cannot"),
        ("tracking=none", "a group cannot be chosen again"),
        ("seed", "Write section.key=value"),
        ("+seed=3", "Write section.key=value"),
        ("seed=[1", "seed=.1: while parsing"),
        ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
    ],
)
def test_frozen_values_refuse_other_overrides(
    frozen: dict[str, Any], override: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        merge(frozen, [override])
