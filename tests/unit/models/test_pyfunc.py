"""A network for MLflow's pyfunc: probabilities of one class, or of each by itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import models
from models.pyfunc import NETWORK, WEIGHTS, PyfuncModel


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_are_those_of_the_labels(tmp_path: Path, activation: str) -> None:
    torch.manual_seed(0)
    network = models.build("lenet5_1998", num_classes=3, in_channels=1).eval()
    save_file(network.state_dict(), tmp_path / WEIGHTS)
    facts = {"name": "lenet5_1998", "options": {}, "classes": ["a", "b", "c"], "channels": 1}
    facts |= {"mean": [0.5], "std": [0.25]}
    facts |= {"activation": "sigmoid"} if activation == "sigmoid" else {}
    (tmp_path / NETWORK).write_text(json.dumps(facts))
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8)
    found = PyfuncModel(tmp_path).predict(images)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        logits = network((pixels - 0.5) / 0.25)
    expected = logits.sigmoid() if activation == "sigmoid" else logits.softmax(dim=1)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
