"""Other data judges a run only where a class is the same class on both sides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_sharding.errors import DataError
from data_sharding.format.manifest import Manifest, read_manifest, write_manifest
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.launch.compose import ComposedConfig
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir
from orchestrator.training.inputs.class_names import check_classes, own_classes
from orchestrator.training.inputs.datasets import check_fingerprint

LETTERS = tuple("abcdefghij")
NUMBERS = tuple("0123456789")


def name_classes(url: Path, *classes: str) -> Manifest:
    for split in ("train", "val"):
        known = read_manifest(str(url), split)
        write_manifest(str(url), split, Manifest(classes, known.shards, {}, images=known.images))
    return read_manifest(str(url), "val")


@pytest.fixture
def made(
    values: dict[str, Any], shards: Path, tmp_path: Path
) -> Callable[..., tuple[RunDir, Config]]:
    """Return a function that makes a run on data of some classes."""

    def made(*classes: str) -> tuple[RunDir, Config]:
        name_classes(shards, *classes)
        values["data"]["url"] = str(shards)
        config = parse(values | {"run_dir": str(tmp_path / "run")})
        return create_or_open_run(ComposedConfig(config, ()))[0], config

    return made


@pytest.mark.parametrize("ours", [LETTERS, NUMBERS])
def test_the_same_classes_in_another_order_are_refused(made: Any, shards: Path, ours: Any) -> None:
    run, _ = made(*ours)
    other = name_classes(shards, *ours[1:], ours[0])
    with pytest.raises(ConfigError, match="class 0 is") as refused:
        check_classes(run, "URL", other)
    assert refused.value.value == "URL"


def test_other_names_are_refused(made: Any, shards: Path) -> None:
    run, _ = made(*LETTERS)
    other = name_classes(shards, *LETTERS[:-1], "cat")
    with pytest.raises(ConfigError, match=r"1 \(j\) .* 1 \(cat\)"):
        check_classes(run, "URL", other)


@pytest.mark.parametrize(
    ("ours", "theirs", "is_noted"),
    [
        (LETTERS, LETTERS, False),
        (NUMBERS, LETTERS, True),
        (LETTERS, NUMBERS, True),
        (NUMBERS, NUMBERS, True),
    ],
)
def test_classes_without_names_are_noted(
    made: Any, shards: Path, ours: Any, theirs: Any, is_noted: bool
) -> None:
    run, _ = made(*ours)
    assert bool(check_classes(run, "URL", name_classes(shards, *theirs))) == is_noted


def test_a_run_keeps_its_classes_whatever_becomes_of_its_data(made: Any, shards: Path) -> None:
    run, _ = made(*LETTERS)
    name_classes(shards, *LETTERS[::-1])
    assert own_classes(run) == LETTERS


def test_a_run_that_does_not_know_its_data_takes_none_for_it(made: Any, shards: Path) -> None:
    run, _ = made(*LETTERS)
    splits = {split: read_manifest(str(shards), split) for split in ("train", "val")}
    check_fingerprint(run, str(shards), splits)
    run.identity_file.unlink()
    with pytest.raises(DataError, match=r"run_info\.json"):
        check_fingerprint(run, str(shards), splits)
