"""A command that chooses no data group follows its data set, as far as nothing is given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_sharding.format.image_profile import ImageProfile
from data_sharding.format.manifest import Manifest, write_manifest
from data_sharding.format.shard_table import ShardInfo, ShardTable
from data_sharding.transforms.eval_protocol import parse_protocol
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.data_choice import DataGroupError, check_default_data, size_settings
from orchestrator.launch.compose import compose

Choose = Callable[..., set[str]]


def profile(width: int, height: int, *, colours: bool, other: int = 0) -> ImageProfile:
    sizes = [sorted([n, n, n + other]) for n in (width, height)]
    return ImageProfile(32, 32 * colours, *map(tuple, sizes), {"JPEG": 32})  # type: ignore[arg-type]


def make_set(
    directory: Path, images: ImageProfile | None, num_classes: int = 7, num: int = 100
) -> str:
    """Write manifests alone: what the images are is read from them."""
    shards = ShardTable.from_infos([ShardInfo("a.tar", num, 10240, "0" * 64)])
    classes = tuple(f"class {i}" for i in range(num_classes))
    for split in "train", "val":
        write_manifest(str(directory), split, Manifest(classes, shards, {}, images=images))
    return str(directory)


@pytest.fixture(scope="module")
def default() -> Config:
    (point,) = compose([])
    return point.config


@pytest.fixture
def choose(default: Config) -> Choose:
    """Return a function from a data set and overrides to those that are added."""

    def choose(url: str, *overrides: str) -> set[str]:
        config = replace(default, data=replace(default.data, url=url))
        try:
            check_default_data(config, overrides)
        except DataGroupError as error:
            return {*error.overrides}
        return set()

    return choose


PHOTOS = profile(500, 375, colours=True, other=100)


def test_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (point,) = compose([f"data.url={make_set(tmp_path, PHOTOS)}", "data.num_workers=1"])
    config = point.config
    assert (config.data.name, config.data.in_channels, config.data.image_size) == ("shards", 3, 224)
    assert (config.model.name, config.data.num_workers) == ("timm/resnet18", 1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_grey_images_keep_one_channel(tmp_path: Path, choose: Choose) -> None:
    chosen = choose(make_set(tmp_path, profile(28, 28, colours=False)))
    assert {"data=shards_grey", "data.image_size=32", "data.crop.hflip_prob=0.0"} <= chosen
    assert "model=resnet18" not in chosen


@pytest.mark.parametrize(
    ("images", "num_classes", "num", "group"),
    [
        (profile(32, 32, colours=True), 10, 50_000, "cifar10"),
        (profile(32, 32, colours=True), 100, 50_000, "cifar100"),
        (profile(28, 28, colours=False), 10, 60_000, "shards_grey"),  # or Fashion-MNIST, KMNIST
        (PHOTOS, 1000, 1_281_167, "imagenet"),
        (profile(32, 32, colours=True), 10, 49_999, "shards"),  # not filed as CIFAR-10
        (profile(8, 8, colours=False), 10, 1437, None),
        (profile(8, 8, colours=False), 10, 90, None),
    ],
)
def test_a_known_set_gets_its_group(
    images: ImageProfile, num_classes: int, num: int, group: str, tmp_path: Path, choose: Choose
) -> None:
    chosen = choose(make_set(tmp_path, images, num_classes, num))
    assert {o for o in chosen if o.startswith("data=")} == ({f"data={group}"} if group else set())


@pytest.mark.parametrize(
    "given", [["data.image_size=96", "data.eval_protocol=center-96-of-96"], ["data.crop.padding=2"]]
)
def test_sizes_that_are_given_stay(given: list[str], tmp_path: Path, choose: Choose) -> None:
    small = make_set(tmp_path, profile(48, 48, colours=True))
    assert choose(small, *given, "model.name=timm/resnet50") == {"data=shards"}


@pytest.mark.parametrize("given", ["data=digits", "+data=shards", "data.name=mine", "experiment=a"])
def test_a_choice_is_not_changed(given: str, tmp_path: Path, choose: Choose) -> None:
    assert not choose(make_set(tmp_path, PHOTOS), given)


def test_images_that_cannot_be_read_need_a_choice(tmp_path: Path, default: Config) -> None:
    url = make_set(tmp_path, None, num_classes=10)
    config = replace(default, data=replace(default.data, url=url))
    with pytest.raises(ConfigError, match="chooses no data") as refused:
        check_data_matches_config(config, ["data.num_workers=1"])
    assert refused.value.value == url
    check_data_matches_config(config, ["data=digits"])


def test_a_sweep_over_sets_that_need_different_settings_is_refused(tmp_path: Path) -> None:
    urls = [make_set(tmp_path / f"{side}", profile(side, side, colours=True)) for side in (48, 500)]
    with pytest.raises(ConfigError, match=r"data\.image_size=64.*model=resnet18") as refused:
        compose(["-m", f"data.url={','.join(urls)}"])
    assert refused.value.value == urls


@pytest.mark.slow
def test_all_points_of_a_sweep_follow(tmp_path: Path) -> None:
    points = compose(["-m", f"data.url={make_set(tmp_path, PHOTOS)}", "seed=0,1"])
    assert [(p.config.seed, p.config.data.name) for p in points] == [(0, "shards"), (1, "shards")]


@pytest.mark.parametrize("side", [*range(1, 70, 7), 96, 100, 223, 224, 1000])
@pytest.mark.parametrize("other", [0, 5])
def test_sizes_are_multiples_of_32_and_fit_their_protocol(side: int, other: int) -> None:
    settings = size_settings(profile(side, side, colours=True, other=other))
    size = settings.get("image_size", 224)
    protocol = parse_protocol(settings.get("eval_protocol", "center-224-of-256"))
    assert size % 32 == 0
    assert size <= max(side + 31, 32)
    assert protocol.crop == size
    assert np.all(np.array(protocol.resizes) >= size)
