"""The shards of a mixture are counted by the overrides that train on it."""

from pathlib import Path

import pytest
from foreign_shards import by_webdataset, labelled

from data_sharding.format.location import Location
from orchestrator.cli.main import main
from orchestrator.launch.compose import compose
from orchestrator.run.train_data import Mixture, read_data


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name, labels in {"a": [0, 1, 2, 3], "b": [1, 0, 2], "val": [0, 3]}.items():
        by_webdataset(tmp_path / f"{name}-000.tar", labelled(labels))
    return tmp_path


def overrides_of(flat: Path) -> list[str]:
    sources = ", ".join(
        f"{{train: '{flat}/{name}-{{000..000}}.tar', weight: {weight}, name: {name}}}"
        for name, weight in (("a", 3), ("b", 1))
    )
    return ["data=shards", f"data.val='{flat}/val-*.tar'", f"data.mix=[{sources}]"]


def test_a_mixture_is_counted_set_by_set_with_the_classes_of_the_first(
    flat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = overrides_of(flat)
    assert main(["shard", "index", *overrides, "--num-workers", "1"]) == 0
    (point,) = compose(overrides)
    train, val = read_data(point.config)
    assert isinstance(train, Mixture)
    assert [source.manifest.num_samples for source in train.sources] == [4, 3]
    assert train.classes == val.classes == train.sources[1].manifest.classes == tuple("0123")
    capsys.readouterr()
    (flat / "b-000.tar").unlink()  # counted already, so it is not looked at
    assert main(["shard", "index", *overrides, "--num-workers", "1"]) == 0


def test_without_a_place_of_its_own_validation_is_in_the_first_set(tmp_path: Path) -> None:
    mix = "data.mix=[{url: a, weight: 3}, {url: 's3://b/c', weight: 1}]"
    (point,) = compose(["data=shards", mix, "seed=1"])
    first = str(Path("a").absolute())
    assert point.config.data.location == Location(first)
    assert point.config.data.train_locations == (Location(first), Location("s3://b/c"))
    (point,) = compose(["data=shards", f"data.url={tmp_path}", mix])
    assert point.config.data.location == Location(str(tmp_path))
