"""The best single neuron of a network that has seen no labels, as a detector of one class.

This is how the Google network's 74.8 % for cats were measured (see `cat_2012.best_neuron`): by the
one neuron that best separates targets from distractors, on images that training has not seen.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_sharding.format.manifest import read_manifest
from data_sharding.loading.loader import iter_batches
from models.historical.cat_2012 import best_neuron
from orchestrator.config.parse import ConfigError, parse
from orchestrator.evaluation.evaluate_runs import choose_device, load_weights, with_data
from orchestrator.run.rundir import RunDir
from orchestrator.torch_workers.entry import report_progress
from orchestrator.training.inputs.datasets import open_eval_set
from orchestrator.training.task.model import build_model

_MAX_BYTES = 16 << 30  # of activations, which are kept in memory


@torch.no_grad()
def find_best_neuron(
    run: str, target: str, data: str | None, split: str, step: int | None
) -> dict[str, float]:
    """Find the neuron that detects a class best; accuracies are in percent.

    Args:
        target: the class to detect.
        data: the URL of a labelled data set; None: the run's own.

    Returns:
        Among others `constant`, the accuracy of the same prediction for every image.
    """
    directory = RunDir(Path(run))
    config = with_data(parse(directory.read_config()), data, split)
    manifest = read_manifest(config.data.location, split)
    if target not in manifest.classes:
        known = ", ".join(manifest.classes[:20]) or "none, as its images have no labels"
        raise ConfigError(
            f"--best-neuron {target}: the data has no such class",
            value=target,
            hint=f"It has {known}.",
        )
    network: Any = build_model(config, len(manifest.classes))
    if not hasattr(network, "features"):
        raise ConfigError(
            f"--best-neuron: {config.model.name} does not show the activations of its neurons",
            value=config.model.name,
            hint="cat_2012 does.",
        )
    device = replace(choose_device(config), dtype=torch.float32)
    loaded = load_weights(network, directory, config, step)
    network.eval().to(device.device)
    dataset = open_eval_set(config, split, manifest)
    features, labels = list[torch.Tensor](), list[torch.Tensor]()
    batches = iter_batches(dataset, range(len(dataset)), config.data.num_workers)
    outputs = device.infer(network.features, batches)
    for batch, output in report_progress(outputs, len(dataset), directory.path.name):
        rows = output.float().cpu()
        _check_memory(rows.shape[1], len(dataset.shards))
        readable = batch.readable.cpu()
        features.append(rows[readable])
        labels.append(batch.labels.cpu()[readable])
    truth, number = torch.cat(labels), manifest.classes.index(target)
    is_target = truth[:, number] > 0 if truth.ndim == 2 else truth.eq(number)
    accuracy, neuron = best_neuron(torch.cat(features), is_target)
    target_pct = 100 * is_target.double().mean().item()
    return {
        "step": loaded.step,
        "accuracy": accuracy,
        "neuron": neuron,
        "num_neurons": features[0].shape[1],
        "constant": max(target_pct, 100 - target_pct),
        "num_targets": int(is_target.sum()),
        "num_images": len(is_target),
    }


def _check_memory(num_neurons: int, num_images: int) -> None:
    num_bytes = 4 * num_neurons * num_images
    if num_bytes > _MAX_BYTES:
        raise ConfigError(
            f"--best-neuron: activations of {num_neurons:,} neurons for {num_images:,} images are "
            f"{num_bytes / 1e9:.0f} GB, and at most {_MAX_BYTES / 1e9:.0f} GB are kept",
            value=num_bytes,
            hint="Take fewer images: --data URL.",
        )
