"""A trained network as a directory of plain files: bytes of images in, probabilities out.

    network.json        its name, options, classes, and how images are normalised
    model.safetensors   its weights

This is what MLflow loads (mlflow.pyfunc, loader_module), and no pickle is read on the way. It
needs this package, torch, timm, torchvision and safetensors.
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
_MAX_IMAGES = 64  # that are computed at the same time


class PyfuncModel:
    """A network that judges images."""

    def __init__(self, directory: Path) -> None:
        said = json.loads((directory / NETWORK).read_text())
        self.classes: list[str] = said["classes"]
        self.network = models.build(
            said["name"],
            num_classes=len(self.classes),
            in_channels=said["channels"],
            **said["options"],
        ).eval()
        self.network.load_state_dict(load_file(directory / WEIGHTS))
        self._mean, self._std = (
            255 * torch.tensor(said[name]).view(1, -1, 1, 1) for name in ("mean", "std")
        )

    @torch.no_grad()
    def predict(
        self, model_input: NDArray[np.uint8], params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Return the probability of each class, (n, num_classes).

        Args:
            model_input: images as they were evaluated, cropped, (n, size, size, channels).
        """
        found = []
        for part in torch.from_numpy(np.array(model_input)).split(_MAX_IMAGES):
            images = (part.permute(0, 3, 1, 2).float() - self._mean) / self._std
            found.append(self.network(images).softmax(dim=1))
        probabilities: NDArray[np.float32] = torch.cat(found).numpy()
        return probabilities


def _load_pyfunc(path: str) -> PyfuncModel:
    """Return what mlflow.pyfunc calls, from the directory that was given to it."""
    return PyfuncModel(Path(path))
