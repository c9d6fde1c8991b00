"""The best single neuron of a network that has seen no labels, as a detector of one class.

    python -m orchestrator.evaluation.best_neuron < request.json

So the Google network's 74.8 % for cats were measured (see `cat_2012.best_neuron`): by the one
neuron that tells targets from distractors best, on images that training has not seen.
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from data_sharding.format.manifest import read_manifest
from data_sharding.loading.loader import iter_batches
from models.historical.cat_2012 import best_neuron
from orchestrator.config.parse import ConfigError, parse
from orchestrator.config.schema import Config
from orchestrator.evaluation.evaluate_runs import load_weights
from orchestrator.run.rundir import RunDir
from orchestrator.torch_workers.entry import counted, json_entry_point
from orchestrator.training.inputs.datasets import open_eval_set
from orchestrator.training.inputs.device import Device
from orchestrator.training.task.model import build_model

_MOST_BYTES = 16 << 30  # of activities, which are kept


@dataclass(frozen=True)
class Request:
    """The run, the class to detect, and the labelled data set; None: the run's own."""

    run: str
    target: str
    data: str | None
    split: str
    step: int | None


@dataclass(frozen=True)
class NeuronResult:
    """In percent; `constant` is what saying the same of every image would be right for."""

    step: int
    accuracy: float
    neuron: int
    num_neurons: int
    constant: float
    num_targets: int
    num_images: int


@torch.no_grad()
def find_best_neuron(request: Request) -> NeuronResult:
    """Return the best neuron.

    Raises:
        ConfigError, DataError, CheckpointError, RunError: something is not there, or does not fit.
    """
    run = RunDir(Path(request.run))
    config = parse(run.read_config())
    manifest = read_manifest(request.data or config.data.url, request.split)
    if request.target not in manifest.classes:
        known = ", ".join(manifest.classes[:20]) or "none: its images have no labels"
        raise ConfigError(f"--neuron {request.target}: the data has no such class. It has {known}.")
    if request.data:
        data = replace(cast("Any", config.data), url=request.data)
        config = cast("Config", replace(cast("Any", config), data=data))
    network = cast("Any", build_model(config, len(manifest.classes)))
    if not hasattr(network, "features"):
        raise ConfigError(
            f"--neuron: {config.model.name} does not say what its neurons do. cat_2012 does."
        )
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = Device.create(config, place)
    step, _ = load_weights(network, run, config, request.step)
    network.eval().to(place)
    dataset = open_eval_set(config, request.split, manifest)
    features, labels = list[torch.Tensor](), list[torch.Tensor]()
    batches = device.prefetch_to_device(
        iter_batches(dataset, range(len(dataset)), config.data.num_workers)
    )
    for batch in counted(batches, len(dataset), run.path.name):
        rows = network.features(batch.images).float().cpu()
        _check_room(rows, len(dataset.shards))
        readable = batch.readable.cpu()
        features.append(rows[readable])
        labels.append(batch.labels.cpu()[readable])
    is_target = torch.cat(labels) == manifest.classes.index(request.target)
    accuracy, neuron = best_neuron(torch.cat(features), is_target)
    share = 100 * is_target.double().mean().item()
    return NeuronResult(
        step=step,
        accuracy=accuracy,
        neuron=neuron,
        num_neurons=features[0].shape[1],
        constant=max(share, 100 - share),
        num_targets=int(is_target.sum()),
        num_images=len(is_target),
    )


def _check_room(rows: torch.Tensor, num_images: int) -> None:
    needed = 4 * rows.shape[1] * num_images
    if needed > _MOST_BYTES:
        raise ConfigError(
            f"--neuron: {rows.shape[1]:,} neurons and {num_images:,} images are {needed / 1e9:.0f} "
            f"GB of activities, more than the {_MOST_BYTES / 1e9:.0f} GB that are kept. Take fewer "
            "images: --data URL."
        )


def main() -> int:
    return json_entry_point(lambda **asked: asdict(find_best_neuron(Request(**asked))))


if __name__ == "__main__":
    sys.exit(main())
