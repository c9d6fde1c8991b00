"""A data set that does not match the config is refused before the run is created."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import conf
from data_sharding.sources.folder import folder
from data_sharding.writing.dataset_writer import write_dataset
from orchestrator.config.parse import ConfigError
from orchestrator.jobs.dry_run import dry_run
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import create_or_open_run
from orchestrator.run.rundir import RunDir


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set that could be CIFAR-10."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(200):
        split = "val" if number % 10 == 9 else "train"
        file = root / split / str(number // 10 % 10) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    url = tmp_path_factory.mktemp("shards") / "a set"
    write_dataset(folder(root), str(url), seed=0, samples_per_shard=100)
    return url


Open = Callable[..., RunDir]


@pytest.fixture
def open_it(tmp_path: Path) -> Open:
    """Return a function that opens a run of a data set."""

    def open_it(url: Path, *arguments: str) -> RunDir:
        (composed,) = compose([f"data.url='{url}'", f"runs_dir='{tmp_path / 'runs'}'", *arguments])
        run, _ = create_or_open_run(composed)
        return run

    return open_it


@pytest.mark.parametrize(
    ("arguments", "of_colours", "remedy"),
    [
        (["data=digits"], True, "data=cifar10"),
        (["data=mnist"], True, "data=cifar10"),
        (["data=cifar100"], True, "data=cifar10"),
        (["data=imagenet"], True, "data=cifar10"),
        (["data.name=mine"], True, "data.in_channels=1"),
        (["data=cifar10"], False, "data=digits"),
        (["data=mnist"], False, "data=digits"),
        (["data=imagenette"], False, "data=digits"),
    ],
)
def test_another_data_set_is_refused_with_its_config_group(
    arguments: list[str],
    of_colours: bool,
    remedy: str,
    colours: Path,
    digits: Path,
    open_it: Open,
    tmp_path: Path,
) -> None:
    url = colours if of_colours else digits
    with pytest.raises(ConfigError) as refused:
        open_it(url, *arguments)
    assert refused.value.value == str(url)
    assert remedy in refused.value.hint
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=remedy):
        dry_run([f"data.url='{url}'", "launcher=slurm", *arguments])


@pytest.mark.parametrize(
    ("arguments", "of_colours"),
    [
        (["data=cifar10"], True),
        (["data=shards"], True),
        (["data=imagenette"], True),  # whose images have any size
        (["data=cifar10", "data.name=mine"], True),
        (["data=mnist", "data.name=mine", "data.in_channels=1"], True),
        ([], False),
        (["data=shards"], False),  # grey images for a network that wants colours
    ],
)
def test_matching_or_explicit_configs_are_accepted(
    arguments: list[str], of_colours: bool, colours: Path, digits: Path, open_it: Open
) -> None:
    few = ("recipe.global_batch_size=32", "model=resnet18")
    assert open_it(colours if of_colours else digits, *few, *arguments).path.is_dir()


def test_an_existing_run_is_not_checked_again(colours: Path, open_it: Open) -> None:
    named = ("data.name=mine", "run_dir=${runs_dir}/run")
    run = open_it(colours, *named, "data.in_channels=1")
    assert open_it(colours, *named) == run


def test_every_named_data_set_has_expectations() -> None:
    for file in (Path(conf.__file__).parent / "data").glob("*.yaml"):
        values = yaml.safe_load(file.read_text())
        if not file.stem.startswith("shards"):
            assert values["expected"]["name"] == values["name"] == file.stem
