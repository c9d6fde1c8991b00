"""A config is valid, or one message says all that is wrong with it and what would be right."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from orchestrator.config import parse as schemas
from orchestrator.config.parse import (
    ConfigError,
    config_hash,
    flatten,
    is_mutable_key,
    parse,
    to_dict,
)
from orchestrator.config.schema import Config
from orchestrator.launch.compose import compose
from orchestrator.run.rundir import RunDir

CONF = Path(conf.__file__).parent
CHOICES = sorted([*CONF.glob("*/*.yaml"), *CONF.glob("data/*/*.yaml")])


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of nested dictionaries."""
    *sections, name = key.split(".")
    for section in sections:
        values = values[section]
    values[name] = value


def complaint(values: dict[str, Any], **changes: Any) -> str:
    """Return what `parse` says of values with some changed; `a__b` stands for the key `a.b`."""
    for key, value in changes.items():
        put(values, key.replace("__", "."), value)
    with pytest.raises(ConfigError) as caught:
        parse(values)
    return str(caught.value)


def test_the_groups_are_those_of_the_defaults_list() -> None:
    defaults = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    groups = [group for entry in defaults if isinstance(entry, dict) for group in entry]
    named = {group for group in groups if not group.startswith("override")}
    assert named == {str(file.parent.relative_to(CONF)) for file in CHOICES}
    assert named == {
        "model",
        "recipe",
        "data",
        "data/cache",
        "launcher",
        "runtime",
        "slurm",
        "tracking",
        "experiment",
    }


@pytest.mark.parametrize(
    "file", CHOICES, ids=lambda file: f"{file.parent.relative_to(CONF)}={file.stem}"
)
def test_every_choice_is_valid_and_survives_its_file(file: Path, tmp_path: Path) -> None:
    group, content = file.parent.relative_to(CONF), yaml.safe_load(file.read_text())
    needed = [f"{group}.{key}=given" for key, value in content.items() if value == "???"]
    (composed,) = compose([f"{group}={file.stem}", *needed])
    run = RunDir(tmp_path)
    run.write_config(to_dict(composed.config))
    assert parse(run.read_config()) == composed.config


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "sede",
            1,
            "sede: there is no such key; did you mean 'seed'? valid: seed, strategy, ",
        ),
        ("xyz", 1, "xyz: there is no such key; valid: seed, strategy, "),
        ("recipe.epoch", 1, "did you mean 'recipe.epochs'? valid: epochs, images, steps, g"),
        ("recipe.optimizer.beta", 1, "recipe.optimizer.beta: there is no such key; valid: name, "),
        (
            "model.published.yaer",
            1,
            "did you mean 'model.published.year'? valid: title, year, venue, ",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_valid_ones(
    values: dict[str, Any], key: str, value: int, expected: str
) -> None:
    assert expected in complaint(values, **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "3"),
        ("seed", True),
        ("seed", 1.5),
        ("seed", None),
        ("recipe.channels_last", 1),
        ("recipe.channels_last", "true"),
        ("recipe.optimizer.lr", "0.1"),
        ("recipe.optimizer.lr", False),
        ("data.mean", 0.3),
        ("model.name", 18),
        ("tracking", "none"),
    ],
)
def test_a_value_of_another_type_is_refused(values: dict[str, Any], key: str, value: Any) -> None:
    message = complaint(values, **{key: value})
    assert f"{key}: " in message
    assert repr(value) in message


def test_a_number_for_a_text_is_told_how_to_be_one(values: dict[str, Any]) -> None:
    assert """run_dir: 2024 is not text; quote it twice: run_dir="'2024'\"""" in complaint(
        values, run_dir=2024
    )


def test_a_whole_number_is_a_number(values: dict[str, Any]) -> None:
    put(values, "recipe.optimizer.lr", 1)
    lr = parse(values).recipe.optimizer.lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("recipe.optimizer.lr", 0, "greater than 0"),
        ("recipe.optimizer.lr", float("inf"), "finite"),
        ("recipe.epochs", float("nan"), "finite"),
        ("recipe.optimizer.momentum", 1.01, "less than or equal to 1"),
        ("recipe.ema_decay", 1, "less than 1"),
        ("recipe.num_micro_batches", 0, "greater than 0"),
        ("recipe.precision", "fp8", "'fp32', 'bf16' or 'fp16'"),
        ("data.image_size", 16385, "less than or equal to 16384"),
        ("data.in_channels", 2, "1 or 3"),
        ("data.shuffle_block_size", 1, "greater than or equal to 2"),
        ("data.max_bad_fraction", -0.1, "greater than or equal to 0"),
        ("checkpoint.keep_last", 1, "greater than or equal to 2"),
        ("if_finished", "ignore", "'error', 'skip' or 'rerun'"),
    ],
)
def test_a_value_out_of_bounds_is_told_the_bound(
    values: dict[str, Any], key: str, value: Any, bound: str
) -> None:
    message = complaint(values, **{key: value})
    assert f"{key}: Input should be" in message
    assert bound in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__mean": [0.1, 0.2]}, "data: mean has 2 numbers for in_channels=1"),
        ({"data__in_channels": 3}, "data: mean has 1 and std has 1 numbers for in_channels=3"),
        ({"data__eval_protocol": "best"}, "Write center-CROP-of-RESIZE"),
        ({"data__eval_protocol": "center-256-of-224"}, "with CROP <= RESIZE"),
        ({"data__crop__scale": [1.0, 0.1]}, "data.crop: scale=(1.0, 0.1) must be given as"),
        ({"recipe__steps": 5}, "one of epochs, images, steps; given: {'epochs': 20.0, 'steps': 5}"),
        ({"recipe__epochs": None}, "one of epochs, images, steps; given: none"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(
    values: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    assert expected in complaint(values, **changes)


def test_one_message_has_all_that_is_wrong(values: dict[str, Any]) -> None:
    del values["logging"]["every_steps"]
    message = complaint(
        values, sede=1, seed="3", recipe__epochs=None, data__in_channels=3, runtime__device="tpu"
    )
    lines = message.splitlines()
    assert lines[0] == "the config cannot be run:"
    named = {line.split(":")[0].strip() for line in lines[1:]}
    assert named == {"sede", "seed", "recipe", "data", "runtime.device", "logging.every_steps"}
    assert "logging.every_steps: is missing" in message


def test_a_config_cannot_be_changed(values: dict[str, Any]) -> None:
    config = parse(values)
    for owner in (config, config.recipe, config.recipe.optimizer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            owner.__setattr__(dataclasses.fields(owner)[0].name, 1)
    classes = [value for value in vars(schemas).values() if dataclasses.is_dataclass(value)]
    assert all(schema.__dataclass_params__.frozen for schema in classes)  # type: ignore[union-attr]


SAFE_SECTIONS = (
    *("launcher", "runtime", "slurm", "logging", "tracking"),
    *("model.published", "data.expected", "data.cache"),
)
SAFE_KEYS = {
    *("run_dir", "runs_dir", "if_finished", "data.url", "data.num_workers", "strategy"),
    *("checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.max_failed_saves"),
    *("checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep_every_steps"),
}


def other(value: Any) -> Any:
    """Return another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "-other"
        case tuple():
            return (*value, 1.0)
        case dict():
            return {**value, "other": 1}
        case _:
            return "given"


def with_other_value(config: Config, key: str) -> Config:
    """Return a config with one key changed, valid or not."""
    owner = changed = copy.deepcopy(config)
    *sections, name = key.split(".")
    for section in sections:
        owner = getattr(owner, section)
    object.__setattr__(owner, name, other(getattr(owner, name)))
    return changed


def test_the_identity_is_all_but_the_safe_keys(values: dict[str, Any]) -> None:
    config = parse(values)
    for key in flatten(values):
        is_same = config_hash(with_other_value(config, key)) == config_hash(config)
        is_safe = key in SAFE_KEYS or key.startswith(SAFE_SECTIONS)
        assert is_same == is_safe, key


def test_a_key_that_is_new_in_the_schema_changes_the_identity_when_it_is_said(
    values: dict[str, Any],
) -> None:
    def newer(kind: type, known: Any, since: int) -> Any:
        fields = [("since", int, dataclasses.field(default=3))]
        made = dataclasses.make_dataclass("Newer", fields, bases=(kind,), frozen=True, kw_only=True)
        later = made.__new__(made)  # pydantic's own way of making it knows no more fields
        later.__dict__.update(vars(known), since=since)
        return later

    config = parse(values)
    before = config_hash(config)
    for since in (3, 4):
        of_section = copy.deepcopy(config)
        object.__setattr__(of_section, "data", newer(type(config.data), config.data, since))
        for later in (newer(Config, config, since), of_section):
            assert (config_hash(later) == before) == (since == 3)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("data.url", True), ("data.url_of_another", False), ("launcher.x.y", True), ("launch", False)],
)
def test_safe_are_a_key_and_what_lies_below_it(key: str, expected: bool) -> None:
    assert is_mutable_key(key) == expected


def test_the_identity_does_not_depend_on_how_a_number_is_written(values: dict[str, Any]) -> None:
    before = config_hash(parse(values))
    values["recipe"]["epochs"] = 20
    values["recipe"]["optimizer"]["momentum"] = 9e-1
    assert config_hash(parse(dict(reversed(values.items())))) == before


def test_a_limit_leaves_time_before_the_ranks_are_told_to_stop(values: dict[str, Any]) -> None:
    lead = {"slurm__signal_delay_s": 120}
    assert "signal_delay_s=120" in complaint(values, slurm__timeout_min=2, **lead)
    put(values, "slurm.timeout_min", 3)
    assert parse(values).slurm.timeout_min == 3


def test_an_interface_is_a_name_that_gloo_takes(values: dict[str, Any]) -> None:
    for well in (None, "ib0", "eth0,eth1", "bond0.100"):
        values["runtime"]["network_interface"] = well
        assert parse(values).runtime.network_interface == well
    for wrong in ("^lo", "=eth0", "", "eth0,^lo"):
        values["runtime"]["network_interface"] = wrong
        with pytest.raises(ConfigError, match=r"runtime: network_interface=.*ib0"):
            parse(values)
