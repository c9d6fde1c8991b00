"""`tahoe shard preview --augmented` shows what a run would feed its network."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sharding.format.manifest import read_manifest
from data_sharding.sampling.sample_order import MicroBatchKey
from orchestrator.cli.main import main
from orchestrator.config.schema import Config
from orchestrator.evaluation.augmented_views import _augmented, _first_samples
from orchestrator.launch.compose import compose
from orchestrator.run.plan import make_plan
from orchestrator.training.inputs.datasets import open_train_set


def draw(digits: Path, output: Path, *arguments: str) -> Image.Image:
    overrides = ("data=digits", f"data.url='{digits}'")
    command = ["shard", "preview", "--augmented", *overrides, "-o", str(output)]
    assert main([*command, *arguments]) == 0
    with Image.open(output) as image:
        image.load()
    return image


def test_a_row_for_each_epoch(digits: Path, tmp_path: Path) -> None:
    few = draw(digits, tmp_path / "few.png", "--num", "5", "--epochs", "2")
    more = draw(digits, tmp_path / "more.png", "--num", "5", "--epochs", "3")
    assert few.width == more.width
    assert more.height - few.height > 160
    shared = np.asarray(more)[: few.height - 24]
    assert (np.asarray(few)[: few.height - 24] == shared).all()


def test_pixels_are_those_of_the_run(digits: Path) -> None:
    config: Config = compose(["data=digits", f"data.url='{digits}'"])[0].config
    train, val = (read_manifest(str(digits), split) for split in ("train", "val"))
    plan = make_plan(config, 1, train, val)
    train_set = open_train_set(config, train, plan)
    memory = np.zeros(train_set.max_bytes, np.uint8)
    shape = train_set.write_batch(MicroBatchKey(0, 0), memory).shape
    in_run = memory.reshape(shape)[..., 0]
    first = _first_samples(train_set, plan.num_micro_batches, 5)
    shown = [np.asarray(tile.image.convert("L")) for tile in _augmented(train_set, first, 0, 32)]
    assert (np.stack(shown) == in_run[:5]).all()
    later = [np.asarray(tile.image.convert("L")) for tile in _augmented(train_set, first, 1, 32)]
    assert not (np.stack(later) == in_run[:5]).all()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "expected"),
    [
        (["--augmented", "data=digits", "data.url=/none"], 1, "/none"),
        (["--augmented", "data=digits", "--num", "0"], 2, "--num"),
        (["--augmented", "data=digits", "--split", "val"], 2, "--split"),
        (["datasets/digits", "--epochs", "2"], 2, "--epochs"),
        (["one", "two"], 2, "URL"),
    ],
)
def test_invalid_previews_are_refused(
    arguments: list[str],
    exit_code: int,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["shard", "preview", *arguments, "-o", str(tmp_path / "x.png")]) == exit_code
    assert expected in capsys.readouterr().err
