"""A trained network for MLflow's pyfunc flavour: bytes of images in, probabilities out.

    network.json        its name, options, classes, and the mean and deviation of its pixels;
                        "activation": "sigmoid" if an image may show several classes
    model.safetensors   its weights

MLflow loads it by `loader_module`; no pickle is read. It needs this package, torch, timm,
torchvision and safetensors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import models

NETWORK, WEIGHTS = "network.json", "model.safetensors"
_BATCH_SIZE = 64


class PyfuncModel:
    """A network that classifies images."""

    def __init__(self, directory: Path) -> None:
        facts = json.loads((directory / NETWORK).read_text())
        self.classes: list[str] = facts["classes"]
        self.network = models.build(
            facts["name"],
            num_classes=len(self.classes),
            in_channels=facts["channels"],
            **facts["options"],
        ).eval()
        self.network.load_state_dict(load_file(directory / WEIGHTS))
        self._is_multi_label = facts.get("activation", "softmax") == "sigmoid"
        self._mean, self._std = (
            255 * torch.tensor(facts[name]).view(1, -1, 1, 1) for name in ("mean", "std")
        )

    @torch.no_grad()
    def predict(
        self, model_input: NDArray[np.uint8], params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Compute the probability of each class, (n, num_classes).

        Args:
            model_input: images, cropped as for the evaluation, (n, size, size, channels).
        """
        batches = []
        for batch in torch.from_numpy(np.array(model_input)).split(_BATCH_SIZE):
            images = (batch.permute(0, 3, 1, 2).float() - self._mean) / self._std
            logits = self.network(images)
            batches.append(logits.sigmoid() if self._is_multi_label else logits.softmax(dim=1))
        probabilities: NDArray[np.float32] = torch.cat(batches).numpy()
        return probabilities


def _load_pyfunc(path: str) -> PyfuncModel:
    """Load the model for mlflow.pyfunc, which calls this with its directory."""
    return PyfuncModel(Path(path))
