"""A config is valid, or one error lists all wrong keys with what would be valid."""

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


def parse_error(values: dict[str, Any], **changes: Any) -> ConfigError:
    """Return the error of parsing changed values; `a__b` stands for the key `a.b`."""
    for key, value in changes.items():
        put(values, key.replace("__", "."), value)
    with pytest.raises(ConfigError) as caught:
        parse(values)
    return caught.value


def test_the_directories_of_conf_are_the_groups_of_the_defaults_list() -> None:
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
        "strategy",
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
    if "shards" in content.get("defaults", ()):
        content = yaml.safe_load((file.parent / "shards.yaml").read_text()) | content
    needed = [f"{group}.{key}=given" for key, value in content.items() if value == "???"]
    (composed,) = compose([f"{group}={file.stem}", *needed])
    run = RunDir(tmp_path)
    run.write_config(to_dict(composed.config))
    assert parse(run.read_config()) == composed.config


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("sede", "'seed'? valid: seed, strategy, "),
        ("xyz", "valid: seed, strategy, "),
        ("recipe.epoch", "'recipe.epochs'? valid: epochs, images, steps, g"),
        ("recipe.optimizer.beta", "valid: name, "),
        ("model.published.yaer", "'model.published.year'? valid: title, year, venue, "),
    ],
)
def test_an_unknown_key_is_refused_with_the_valid_ones(
    values: dict[str, Any], key: str, expected: str
) -> None:
    error = parse_error(values, **{key: 1})
    assert error.value == [key]
    assert expected in error.problem


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
    error = parse_error(values, **{key: value})
    assert error.value == [key]
    assert repr(value) in error.problem


def test_a_number_for_a_string_is_refused_with_its_quoted_form(values: dict[str, Any]) -> None:
    assert """run_dir="'2024'\"""" in parse_error(values, run_dir=2024).problem


def test_a_float_may_be_written_as_an_integer(values: dict[str, Any]) -> None:
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
def test_a_value_out_of_bounds_is_refused_with_the_bound(
    values: dict[str, Any], key: str, value: Any, bound: str
) -> None:
    error = parse_error(values, **{key: value})
    assert error.value == [key]
    assert bound in error.problem


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"data__mean": [0.1, 0.2]}, "data"),
        ({"data__in_channels": 3}, "data"),
        ({"data__eval_protocol": "best"}, "data"),
        ({"data__eval_protocol": "center-256-of-224"}, "data"),
        ({"data__crop__scale": [1.0, 0.1]}, "data.crop"),
        ({"recipe__steps": 5}, "recipe"),
        ({"recipe__epochs": None}, "recipe"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(
    values: dict[str, Any], changes: dict[str, Any], section: str
) -> None:
    assert parse_error(values, **changes).value == [section]


def test_one_error_has_all_wrong_keys(values: dict[str, Any]) -> None:
    del values["logging"]["every_steps"]
    error = parse_error(
        values, sede=1, seed="3", recipe__epochs=None, data__in_channels=3, runtime__device="tpu"
    )
    wrong = {"sede", "seed", "recipe", "data", "runtime.device", "logging.every_steps"}
    assert set(error.value) == wrong  # type: ignore[call-overload]
    assert len(error.problem.splitlines()) == 1 + len(wrong)


def test_replace_takes_dotted_keys(values: dict[str, Any]) -> None:
    config = parse(values)
    changed = config.replace({"seed": 7, "recipe.epochs": None, "recipe.steps": 5, "data.url": "a"})
    assert (changed.seed, changed.recipe.steps, changed.data.url) == (7, 5, "a")
    assert changed.recipe.optimizer == config.recipe.optimizer


def test_a_config_cannot_be_changed(values: dict[str, Any]) -> None:
    config = parse(values)
    for owner in (config, config.recipe, config.recipe.optimizer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            owner.__setattr__(dataclasses.fields(owner)[0].name, 1)
    classes = [value for value in vars(schemas).values() if dataclasses.is_dataclass(value)]
    assert all(schema.__dataclass_params__.frozen for schema in classes)  # type: ignore[union-attr]


MUTABLE_SECTIONS = (
    *("launcher", "runtime", "slurm", "logging", "profile", "tracking", "notify"),
    *("model.published", "data.expected", "data.cache"),
)
MUTABLE_KEYS = {
    *("run_dir", "runs_dir", "if_finished", "data.url", "data.num_workers", "data.keep_decoded_mb"),
    *("strategy.name", "strategy.bucket_cap_mb"),
    *("data.train", "data.val", "data.manifest"),
    *("checkpoint.keep_last", "checkpoint.keep_best", "checkpoint.max_failed_saves"),
    "recipe.grad_checkpointing",
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


def test_the_config_hash_covers_all_but_the_mutable_keys(values: dict[str, Any]) -> None:
    config = parse(values)
    for key in flatten(values):
        is_same = config_hash(with_other_value(config, key)) == config_hash(config)
        is_mutable = key in MUTABLE_KEYS or key.startswith(MUTABLE_SECTIONS)
        assert is_same == is_mutable, key


def test_a_new_key_with_its_default_does_not_change_the_config_hash(
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
def test_a_mutable_key_covers_the_keys_below_it(key: str, expected: bool) -> None:
    assert is_mutable_key(key) == expected


def test_the_config_hash_does_not_depend_on_how_a_number_is_written(values: dict[str, Any]) -> None:
    before = config_hash(parse(values))
    values["recipe"]["epochs"] = 20
    values["recipe"]["optimizer"]["momentum"] = 9e-1
    assert config_hash(parse(dict(reversed(values.items())))) == before


def test_a_time_limit_must_exceed_the_signal_delay(values: dict[str, Any]) -> None:
    error = parse_error(values, slurm__timeout_min=2, slurm__signal_delay_s=120)
    assert error.value == ["slurm"]
    put(values, "slurm.timeout_min", 3)
    assert parse(values).slurm.timeout_min == 3


def test_a_network_interface_must_be_a_name_for_gloo(values: dict[str, Any]) -> None:
    for valid in (None, "ib0", "eth0,eth1", "bond0.100"):
        values["runtime"]["network_interface"] = valid
        assert parse(values).runtime.network_interface == valid
    for wrong in ("^lo", "=eth0", "", "eth0,^lo"):
        assert parse_error(values, runtime__network_interface=wrong).value == ["runtime"]


def test_a_path_that_is_not_utf8_is_refused_by_its_key(values: dict[str, Any]) -> None:
    """Of a disk with Latin-1 names, say; Python has the bytes as surrogates."""
    error = parse_error(values, run_dir=b"/runs/r\xfc".decode(errors="surrogateescape"))
    assert error.value == ["run_dir"]
    assert len(str(error).encode()) < 400  # and can be printed
