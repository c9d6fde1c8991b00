"""The cost of a run, computed in a subprocess with torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.launch.checks.model_cost import model_cost
from orchestrator.launch.create_run import make_plan_for

# C1, C3 (dense), C5, F6 and the output of LeNet-5 on 32 x 32 pixels: LeCun et al. 1998, section II.
LENET_MACS = 6 * 25 * 28**2 + 16 * 6 * 25 * 10**2 + 120 * 400 + 84 * 120 + 10 * 84


@pytest.fixture
def config(values: dict[str, Any], shards: Path) -> Config:
    """Return LeNet-5 on 1,000 batches of 64."""
    values["data"]["url"] = str(shards)
    values["recipe"] |= {"epochs": None, "steps": 1000, "global_batch_size": 64}
    return parse(values)


def with_model(config: Config, name: str, **options: Any) -> Config:
    return replace(config, model=replace(config.model, name=name, kwargs=options))


@pytest.mark.slow
def test_the_cost_is_that_of_the_layers(config: Config) -> None:
    line = str(model_cost(config, make_plan_for(config)))
    assert f"{LENET_MACS / 1e9:.4g} GMACs an image" in line
    assert f"about {6 * LENET_MACS * 64_000 / 1e15:.4g} petaFLOP to train" in line


NETWORK = """
import os
from torch import nn

def build(num_classes, in_channels):
    print("building", flush=True)
    os.system("echo from another process")
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 32 * 32, num_classes))
"""


@pytest.mark.slow
def test_a_network_may_print(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "printing_network.py").write_text(NETWORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cost = model_cost(with_model(config, "printing_network:build"), make_plan_for(config))
    assert "10,250 parameters" in str(cost)


def test_a_network_that_cannot_be_built_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'depth'"):
        model_cost(with_model(config, "lenet5_1998", depth=1), make_plan_for(config))


@pytest.mark.slow
def test_a_network_that_does_not_take_the_images_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"image_size=32.*Input height \(32\) doesn't match"):
        model_cost(with_model(config, "timm/vit_tiny_patch16_224"), make_plan_for(config))
